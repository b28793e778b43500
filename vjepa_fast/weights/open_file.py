"""Opens weights of any published kind: what is in a file or folder, and which model it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from vjepa_fast.errors import UserError
from vjepa_fast.weights.published import our_name
from vjepa_fast.weights.reading.check_weights import require_supported
from vjepa_fast.weights.reading.find_model import Known, weight_file
from vjepa_fast.weights.reading.names import CLASSIFIER, Named
from vjepa_fast.weights.reading.other_models import counted, listed
from vjepa_fast.weights.reading.own_export import KEY, open_own_export
from vjepa_fast.weights.reading.read_tensors import (
    is_safetensors,
    no_weights,
    read_safetensors,
    read_torch,
    stored_tensors,
)
from vjepa_fast.weights.reading.transformers_folder import is_transformers, open_transformers
from vjepa_fast.weights.weight_file import WeightFile

# Keys of published checkpoints beside the networks.
_PARTS = {
    "encoder": "encoder",
    "target_encoder": "target_encoder",
    "ema_encoder": "target_encoder",
    "predictor": "predictor",
}
_LEFT_OUT = {
    "opt": "state of the optimizer",
    "scaler": "state of the loss scaler",
    "classifier": CLASSIFIER,
    "classifiers": CLASSIFIER,
}


def open_weights(
    path: Path,
    *,
    heads: int | None = None,
    predictor_heads: int | None = None,
    crop_size: int | None = None,
    num_frames: Sequence[int] | None = None,
    generation: Literal[1, 2] | None = None,
) -> WeightFile:
    """Open weights without reading them: names, shapes, and the model that follows from them.

    Position tables are read. The file must stay as it is while its weights are in use.

    Args:
        path: a published file of facebookresearch/jepa or vjepa2, a `transformers` folder or file
            of VJEPA2Model or VJEPA2ForVideoClassification, or one of our exports.
        heads, predictor_heads: attention heads, where neither a config nor a published width tells.
        crop_size, num_frames: size in pixels and frames of a clip, where neither a config nor a
            position table tells; several lengths for a predictor whose mask token i is that of
            clips of the i-th length.
        generation: 1 (V-JEPA) or 2 (V-JEPA 2), where the weights leave it open. None: what they
            show. Released files of both generations hold position tables.

    Raises:
        UserError: no such weights; damaged; of another model; a pickle that wants to run code;
            tensors that no one knows; or something is not known and has to be said.
    """
    for flag, value in (
        ("--heads", heads),
        ("--predictor-heads", predictor_heads),
        ("--crop-size", crop_size),
    ):
        if value is not None:
            _require_whole(flag, (value,))
    lengths = None if num_frames is None else tuple(num_frames)
    if lengths is not None:
        _require_whole("--num-frames", lengths)
    known = Known(heads, predictor_heads, crop_size, lengths, generation)
    if (path / "checkpoints").is_dir() or (path / "state.json").is_file():
        raise no_weights(path, "a run or a checkpoint of vjepa_fast, which needs no import")
    if path.is_dir() and not (path / "config.json").exists():
        return replace(_open(_only_file(path), known), path=path)
    return _open(path, known)


def _open(path: Path, known: Known) -> WeightFile:
    if path.is_dir():
        return open_transformers(path, known)
    if not path.is_file():
        raise no_weights(path, "no such file or folder")
    if not is_safetensors(path):
        return weight_file(path, "published", _published(path, read_torch(path)), known)
    tensors, metadata = read_safetensors(path)
    if KEY in metadata:
        return open_own_export(path, tensors, metadata, known)
    if is_transformers(tensors):
        return open_transformers(path, known)
    named = Named()
    named.add_published("encoder", tensors.values(), "")
    return weight_file(path, "published", named, known)


def _only_file(folder: Path) -> Path:
    """The only weights in a folder without config.json, as our exports are."""
    endings = (".safetensors", ".pt", ".pth", ".pth.tar")
    files = [path for path in sorted(folder.iterdir()) if path.name.endswith(endings)]
    if len(files) != 1:
        names = listed([path.name for path in files])
        what = f"several files of weights ({names})" if files else "no weights"
        raise no_weights(folder, f"a folder without config.json and with {what}")
    return files[0]


def _require_whole(flag: str, values: tuple[int, ...]) -> None:
    if not values or min(values) < 1 or len(set(values)) < len(values):
        raise UserError(
            f"{flag}: found {','.join(map(str, values)) or 'nothing'}, expected different numbers "
            "of at least 1; correct it"
        )


def _published(path: Path, content: Any) -> Named:
    """The tensors of a published checkpoint, or of a state dict of one encoder."""
    if not isinstance(content, Mapping):
        raise no_weights(path, f"a {type(content).__name__}")
    names = [key for key in content if isinstance(key, str)]
    found = [key for key in names if key in _PARTS and isinstance(content[key], Mapping)]
    named = Named()
    if not found:
        return _bare(path, content, named)
    for key in found:
        require_supported(path, f"the {key}", [str(name) for name in content[key]])
    if {"target_encoder", "ema_encoder"} <= set(found):
        raise UserError(
            f"{path}: found both target_encoder and ema_encoder, expected one of them; save a file "
            "that has only one"
        )
    for key in found:
        state = content[key]
        wrong = [str(name) for name, value in state.items() if not isinstance(value, Tensor)]
        if wrong:
            raise UserError(
                f"{path}: found {listed(wrong)} in {key}, which are not tensors, expected a state "
                "dict; give the file as its training wrote it"
            )
        named.add_published(_PARTS[key], stored_tensors(path, state, f"{key}."), f"{key}.")
    rest = {key: value for key, value in content.items() if key not in found}
    unknown = []
    for tensor in stored_tensors(path, rest):
        reason = _LEFT_OUT.get(tensor.name.split(".")[0])
        if reason is None:
            unknown.append(tensor.name)
        else:
            named.left_out[tensor.name] = reason
    if unknown:
        raise UserError(
            f"{path}: found {counted('unknown tensor', unknown)}, expected those of "
            "encoder, predictor and target_encoder or ema_encoder; save a file without them"
        )
    return named


def _bare(path: Path, content: Mapping, named: Named) -> Named:
    """A state dict of one encoder."""
    tensors = list(stored_tensors(path, content))
    if not tensors:
        raise no_weights(path, f"no tensors, only {listed([str(key) for key in content])}")
    if any(tensor.name.split(".")[0] in ("classifier", "classifiers") for tensor in tensors):
        raise no_weights(path, "the weights of a probe")
    if any(our_name(tensor.name).startswith("mask_tokens") for tensor in tensors):
        raise no_weights(path, "a predictor alone")
    named.add_published("encoder", tensors, "")
    return named
