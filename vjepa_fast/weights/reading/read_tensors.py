"""Reads the tensors of a file, safely and lazily: PyTorch's own files, and safetensors."""

from __future__ import annotations

import pickle
import pickletools
import re
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vjepa_fast.errors import UserError

_FLOATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
# A damaged pickle can end in any of these.
_ANY = (
    pickle.UnpicklingError,
    RuntimeError,
    OSError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
)
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, not yet in memory.

    Attributes:
        name: in the file.
        shape: of the tensor.
        dtype: a floating one of at least 16 bits, or None for any other.
        load: read it. Raises what the library raises.
        file: that holds it, for messages.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype | None
    load: Callable[[], Tensor]
    file: Path

    def read(self) -> Tensor:
        """The tensor, on the host; backed by the file where that is possible.

        Raises:
            UserError: the file is damaged, or the tensor, in fp32, holds NaN or infinity.
        """
        try:
            value = self.load().detach()  # parameters are saved as such here and there
        except (OSError, RuntimeError, SafetensorError) as error:
            raise damaged(self.file, error) from None
        if value.numel() and not all(end.float().isfinite() for end in torch.aminmax(value)):
            raise UserError(
                f"{self.file}: found NaN or infinity in {self.name}, expected finite weights; use "
                "an earlier checkpoint of that training"
            )
        return value


def damaged(path: Path, error: Exception | str) -> UserError:
    """The error for a file that cannot be read to its end."""
    first = re.split(r"[\n.]", str(error).strip())[0] or "it ends too early"
    return UserError(
        f"{path}: found a damaged file ({first}), expected a whole one; copy or download it again"
    )


def no_weights(path: Path, found: str) -> UserError:
    """The error for a path that holds something else than weights."""
    return UserError(
        f"{path}: found {found}, expected the weights of V-JEPA or V-JEPA 2: a .pth.tar, .pt or "
        ".safetensors file, or a folder of transformers; name one"
    )


def is_safetensors(path: Path) -> bool:
    """Whether the file's first bytes are those of a safetensors file."""
    with open(path, "rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:] == b"{" and head[5:8] == b"\0\0\0"


def read_safetensors(path: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """The tensors of a safetensors file, and the metadata in its header.

    Raises:
        UserError: the file is damaged.
    """
    try:
        file = safe_open(path, framework="pt")
        names = list(file.keys())
        tensors = {}
        for name in names:
            part = file.get_slice(name)
            tensors[name] = Stored(
                name,
                tuple(part.get_shape()),
                _FLOATS.get(part.get_dtype()),
                lambda name=name: file.get_tensor(name),
                path,
            )
        return tensors, dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise damaged(path, error) from None


def read_torch(path: Path) -> Any:
    """What `torch.save` wrote, its tensors backed by the file unless it is of the old format.

    Nothing of the file is ever executed.

    Raises:
        UserError: the file is damaged, no file of PyTorch, or wants to call something.
    """
    with open(path, "rb") as file:
        head = file.read(24)
    if not head:
        raise no_weights(path, "an empty file")
    if head == b"version https://git-lfs.":
        raise UserError(
            f"{path}: found a Git LFS pointer, expected the file that it stands for; run git lfs "
            "pull in its repository"
        )
    in_zip = head[:4] == b"PK\x03\x04"
    if not in_zip and head[:1] != b"\x80":  # a pickle of protocol 2 and above begins so
        raise no_weights(path, "a file of another kind")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=in_zip)
    except _ANY as error:
        text = str(error)
        if wanted := _GLOBAL.search(text):
            raise _runs_code(path, wanted[1]) from None
        if "TorchScript" in text:
            raise no_weights(path, "a TorchScript program") from None
        operand = re.search(r"Unsupported operand \d+", text)
        if operand and not in_zip and (called := _called(path)):
            raise _runs_code(path, called) from None
        if in_zip and "not in a subdirectory" in text:
            raise no_weights(path, "a zip archive of other files") from None
        raise damaged(path, operand[0] if operand else text) from None


def _runs_code(path: Path, called: str) -> UserError:
    return UserError(
        f"{path}: found a pickle that wants to call {called}, expected tensors and plain numbers "
        "only, since loading it could run any code; save the state dicts alone where the file "
        "comes from"
    )


def _called(path: Path) -> str | None:
    """What a pickle of a newer protocol wants to call first, read without running it."""
    strings: list[str] = []
    try:
        with open(path, "rb") as file:
            for opcode, argument, _ in pickletools.genops(file):
                if opcode.name == "STACK_GLOBAL":
                    return ".".join(strings[-2:])
                if isinstance(argument, str):
                    strings.append(argument)
    except (ValueError, OSError):
        pass
    return None


def require_checksums(path: Path) -> None:
    """Compare all bytes of a zip of PyTorch with the checksums in it; other files have none.

    Reads the whole file. torch.load does not look at them.

    Raises:
        UserError: some differ.
    """
    if not path.is_file() or not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as file:
            wrong = file.testzip()
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError) as error:
        raise damaged(path, error) from None
    if wrong:
        raise damaged(path, f"the bytes of {wrong.partition('/')[2]} differ from their checksum")


def stored_tensors(path: Path, state: Mapping[Any, Any], at: str = "") -> Iterator[Stored]:
    """The tensors of nested dicts and lists, named by the keys that lead to them."""
    for key, value in state.items():
        name = f"{at}{key}"
        if isinstance(value, Tensor):
            known = value.dtype in _FLOATS.values() and value.layout == torch.strided
            dtype = value.dtype if known else None
            yield Stored(name, tuple(value.shape), dtype, lambda value=value: value, path)
        elif isinstance(value, Mapping):
            yield from stored_tensors(path, value, f"{name}.")
        elif isinstance(value, list | tuple):
            yield from stored_tensors(path, dict(enumerate(value)), f"{name}.")
