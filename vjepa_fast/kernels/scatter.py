"""The backward of every gather: add rows back to where they came from, in a fixed order."""

from __future__ import annotations

import torch
from torch import Tensor


def add_rows(values: Tensor, rows: Tensor, size: int) -> Tensor:
    """Sum values[i] into row rows[i] of a zero tensor.

    PyTorch's own backward of an indexing adds atomically, even on CPU: with duplicates its result
    changes from run to run. Here rows that occur once are copied and duplicates are added in order,
    which on CPU is deterministic (on CUDA too, unless rows repeat).

    Args:
        values: [R, D].
        rows: [R] int, in 0 … size - 1.
        size: rows of the result.

    Returns:
        [size, D], dtype of values.
    """
    out = values.new_zeros(size, values.shape[1])
    rows = rows.long()
    if values.device.type == "cpu" and bool((torch.bincount(rows, minlength=1) <= 1).all()):
        return out.index_copy_(0, rows, values)
    return out.index_add_(0, rows, values)
