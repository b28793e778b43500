"""Our names for the tensors of a file, and the tensors that have none."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from vjepa_fast.errors import UserError
from vjepa_fast.weights.published import POSITION_TABLES, our_name
from vjepa_fast.weights.reading.other_models import counted, listed
from vjepa_fast.weights.reading.read_tensors import Stored
from vjepa_fast.weights.weight_file import Weight

TABLE = "position table, computed anew"
UNUSED_TABLE = "position table, not used beside rotary positions"
CLASSIFIER = "of a classifier on the features"
_BLOCK = re.compile(r"^(encoder|predictor)\.layer\.(\d+)\.(.+)$")
_QKV = ("query", "key", "value")
_HEADS = {
    "encoder.embeddings.patch_embeddings.": "encoder.patch_embed.",
    "encoder.layernorm.": "encoder.norm.",
    "predictor.embeddings.predictor_embeddings.": "predictor.embed.",
    "predictor.embeddings.mask_tokens": "predictor.mask_tokens",
    "predictor.layernorm.": "predictor.norm.",
    "predictor.proj.": "predictor.proj.",
}


@dataclass
class Named:
    """The tensors of a file by our names.

    Attributes:
        parts: parameters by part, "encoder", "target_encoder" or "predictor", and by our name, as
            far as there is one.
        tables: position tables by part.
        left_out: why a tensor is not used, by its name in the file.
    """

    parts: dict[str, dict[str, Weight]] = field(default_factory=dict)
    tables: dict[str, Stored] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def add(self, part: str, name: str, stored: Iterable[Stored]) -> None:
        """Add a parameter that one or several tensors hold.

        Raises:
            UserError: they are no floating numbers, differ in shape, or it is there already.
        """
        pieces = tuple(stored)
        for piece in pieces:
            require_float(piece)
        first = pieces[0]
        if any(piece.shape != first.shape for piece in pieces):
            raise UserError(
                f"{first.file}: found {first.name} of shape {first.shape} beside "
                f"{listed([f'{p.name} {p.shape}' for p in pieces[1:]])}, expected one shape; give "
                "the file as its training wrote it"
            )
        shape = (len(pieces) * first.shape[0], *first.shape[1:]) if first.shape else ()
        inner = shape[1:-1]
        if name == "mask_tokens" and set(inner) == {1}:  # [M, 1, 1, P], also of [1, 1, P] each
            shape = (shape[0], shape[-1])
        if name in self.parts.setdefault(part, {}):
            raise _twice(part, name, first)
        self.parts[part][name] = Weight(shape, tuple(piece.read for piece in pieces))

    def add_published(self, part: str, tensors: Iterable[Stored], prefix: str) -> None:
        """Add a published state dict, whose tensors' names begin with the prefix.

        Raises:
            UserError: see `add`; or mask tokens are missing in between, or tensors are there twice.
        """
        mask_tokens: dict[str, Stored] = {}
        self.parts.setdefault(part, {})
        for tensor in tensors:
            name = our_name(tensor.name.removeprefix(prefix))
            head, _, rest = name.partition(".")
            if name in POSITION_TABLES:
                if part in self.tables:
                    raise _twice(part, name, tensor)
                require_float(tensor)
                self.tables[part] = tensor
                self.left_out[tensor.name] = TABLE
            elif head == "mask_tokens" and rest:
                if rest in mask_tokens:
                    raise _twice(part, name, tensor)
                mask_tokens[rest] = tensor
            else:
                self.add(part, name, [tensor])
        if mask_tokens:
            numbers = [str(i) for i in range(len(mask_tokens))]
            if mask_tokens.keys() != set(numbers):
                file = next(iter(mask_tokens.values())).file
                raise UserError(
                    f"{file}: found the mask tokens {listed(sorted(mask_tokens))}, expected "
                    f"{listed(numbers)}; give the file as its training wrote it"
                )
            self.add(part, "mask_tokens", [mask_tokens[i] for i in numbers])

    def add_transformers(self, path: Path, tensors: Iterable[Stored]) -> None:
        """Add the tensors of a VJEPA2Model, or of the one in a VJEPA2ForVideoClassification.

        Raises:
            UserError: see `add`; or a tensor has another name.
        """
        qkv: dict[tuple[str, str], dict[str, Stored]] = {}
        unknown = []
        for tensor in tensors:
            name = tensor.name.removeprefix("vjepa2.")
            block = _BLOCK.match(name)
            head = next((head for head in _HEADS if name.startswith(head)), None)
            if name.startswith(("pooler.", "classifier.")):
                self.left_out[tensor.name] = CLASSIFIER
            elif block:
                part, layer, rest = block.groups()
                inner, _, leaf = rest.removeprefix("attention.").rpartition(".")
                if rest.startswith("attention.") and inner in _QKV:
                    qkv.setdefault((part, f"blocks.{layer}.attn.qkv.{leaf}"), {})[inner] = tensor
                else:
                    rest = re.sub(r"^attention\.", "attn.", rest)
                    self.add(part, f"blocks.{layer}.{rest}", [tensor])
            elif head:
                part, _, ours = (_HEADS[head] + name.removeprefix(head)).partition(".")
                self.add(part, ours, [tensor])
            else:
                unknown.append(tensor.name)
        for (part, name), found in qkv.items():
            missing = [kind for kind in _QKV if kind not in found]
            if missing:
                tensor = next(iter(found.values()))
                raise UserError(
                    f"{path}: found {tensor.name} without {' and '.join(missing)}, expected query, "
                    "key and value of every block; give the folder as it was saved"
                )
            self.add(part, name, [found[kind] for kind in _QKV])
        if unknown:
            raise UserError(
                f"{path}: found {counted('unknown tensor', unknown)}, expected those "
                "of VJEPA2Model or VJEPA2ForVideoClassification; give such a folder"
            )


def _twice(part: str, name: str, tensor: Stored) -> UserError:
    return UserError(
        f"{tensor.file}: found {name} of the {part} twice, again as {tensor.name}, expected it "
        "once; give the file as its training wrote it"
    )


def require_float(tensor: Stored) -> None:
    """Raise UserError for a tensor of integers, of 8-bit floats, or of another layout."""
    if tensor.dtype is None:
        raise UserError(
            f"{tensor.file}: found {tensor.name}, which is no dense tensor of 16-, 32- or 64-bit "
            "floating numbers, expected such weights; give weights that are not quantized or sparse"
        )
