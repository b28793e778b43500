"""Argument checks shared by the ops."""

from __future__ import annotations

import torch
from torch import Tensor

from vjepa_fast.kernels._dispatch import checks_index_values


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
