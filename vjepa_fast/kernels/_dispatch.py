"""Before an op runs: checks its arguments, chooses between Triton kernel and PyTorch reference."""

from __future__ import annotations

import logging
import os
from functools import lru_cache

import torch
from torch import Tensor
from triton import knobs

log = logging.getLogger("vjepa_fast.kernels")

# Triton reads TRITON_INTERPRET when a kernel is decorated: at the import of this package.
INTERPRETED = bool(knobs.runtime.interpret)

# Options of every launch. Triton 3.9 warns where this is unset: 3.10 changes the default.
LAUNCH = {"enable_fp_fusion": True}


def use_triton(op: str, tensor: Tensor) -> bool:
    """Whether `op` runs Triton kernels on the device of `tensor`.

    The environment variable VJEPA_FAST_KERNELS decides: unset or "auto" is Triton on CUDA and the
    PyTorch reference elsewhere; "triton" is always Triton (on CPU only under Triton's interpreter:
    TRITON_INTERPRET=1 when this package is imported); "reference" is always the reference. The
    choice is logged once per op and device at level INFO.

    Raises:
        ValueError: another value of the variable; "triton" where Triton can't run.
    """
    return _choose(op, tensor.device.type, os.environ.get("VJEPA_FAST_KERNELS", "auto"))


@lru_cache
def _choose(op: str, device: str, setting: str) -> bool:
    if setting not in ("auto", "triton", "reference"):
        raise ValueError(
            f"VJEPA_FAST_KERNELS: found {setting!r}, expected 'auto', 'triton' or 'reference'; "
            "unset it or set one of these"
        )
    if setting == "triton" and device != "cuda" and not (device == "cpu" and INTERPRETED):
        raise ValueError(
            f"VJEPA_FAST_KERNELS: found 'triton' and a tensor on {device}, expected one on cuda; "
            "set it to 'auto' or, to run the kernels in Triton's slow CPU interpreter, set "
            "TRITON_INTERPRET=1 before the import"
        )
    triton = setting == "triton" or (setting == "auto" and device == "cuda")
    way = ("Triton's interpreter" if INTERPRETED else "Triton") if triton else "PyTorch reference"
    log.info("%s on %s: %s", op, device, way)
    return triton


def checks_index_values(index: Tensor) -> bool:
    """Whether the values of `index` are checked.

    They are on CPU, except where the interpreter stands in for a GPU, and everywhere under
    VJEPA_FAST_CHECK_INDEX=1 (on CUDA a host sync).
    """
    if os.environ.get("VJEPA_FAST_CHECK_INDEX") == "1":
        return True
    return index.device.type == "cpu" and os.environ.get("VJEPA_FAST_KERNELS") != "triton"


def require(condition: bool, message: str) -> None:
    """Raise ValueError(message) unless condition holds."""
    if not condition:
        raise ValueError(message)


def require_tensor(name: str, value: object) -> None:
    """Reject anything but a tensor."""
    require(
        isinstance(value, Tensor),
        f"{name}: found {type(value).__name__}, expected a tensor; pass torch.as_tensor({name})",
    )


def require_integers(name: str, tensor: Tensor) -> None:
    """Reject a tensor that is neither int32 nor int64."""
    require(
        tensor.dtype in (torch.int32, torch.int64),
        f"{name}: found dtype {tensor.dtype}, expected int32 or int64; cast it",
    )


def require_floating(name: str, tensor: Tensor) -> None:
    """Reject a tensor of a dtype that the kernels don't support."""
    require(
        tensor.dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16),
        f"{name}: found dtype {tensor.dtype}, expected float64, float32, bfloat16 or float16; "
        "cast it",
    )


def require_same_device(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Reject a tensor that is not on the device of `other`."""
    require(
        tensor.device == other.device,
        f"{name}: found device {tensor.device}, expected {other.device} as for {other_name}; "
        "move it there",
    )


def require_index(name: str, index: Tensor, size: int) -> None:
    """Reject an index tensor of a wrong dtype or with entries outside 0 … size - 1.

    Entries are checked on CPU, and on CUDA under VJEPA_FAST_CHECK_INDEX=1 (a host sync). Call this
    in an op's body: torch.compile can't trace it.
    """
    require_integers(name, index)
    if index.numel() and checks_index_values(index):
        low, high = (int(v) for v in torch.aminmax(index))
        require(
            low >= 0 and high < size,
            f"{name}: found entries {low} to {high}, expected 0 to {size - 1}; "
            "an index counts tokens or rows of the tensor it points into",
        )
