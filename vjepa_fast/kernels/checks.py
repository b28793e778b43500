"""Argument checks shared by the ops."""

from __future__ import annotations

import torch
from torch import Tensor


def require(condition: bool, message: str) -> None:
    """Raise ValueError(message) unless condition holds."""
    if not condition:
        raise ValueError(message)


def require_integers(name: str, tensor: Tensor) -> None:
    """Refuse a tensor that is neither int32 nor int64."""
    require(
        tensor.dtype in (torch.int32, torch.int64),
        f"{name}: found dtype {tensor.dtype}, expected int32 or int64",
    )


def require_index(name: str, index: Tensor, size: int) -> None:
    """Refuse an index tensor of a wrong dtype or, on CPU, with an entry outside 0 … size - 1.

    On CUDA the range is not looked at, since that would wait for the device.
    """
    require_integers(name, index)
    if index.device.type == "cpu" and index.numel():
        low, high = (int(v) for v in torch.aminmax(index))
        require(
            low >= 0 and high < size,
            f"{name}: found entries {low} to {high}, expected 0 to {size - 1}",
        )
