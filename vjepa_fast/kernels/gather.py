"""Gather tokens by index: x[b, index[b, k]] for every clip b."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vjepa_fast.kernels.checks import require, require_index
from vjepa_fast.kernels.scatter import add_rows


def gather_tokens_reference(x: Tensor, index: Tensor) -> Tensor:
    """The specification of `gather_tokens`, in plain PyTorch."""
    clip = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
    return x[clip, index.long()]


class _GatherTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, index):
        ctx.save_for_backward(index)
        ctx.shape = x.shape
        return gather_tokens_reference(x, index)

    @staticmethod
    def backward(ctx, grad):
        (index,) = ctx.saved_tensors
        b, n, d = ctx.shape
        first = n * torch.arange(b, device=index.device).unsqueeze(1)
        rows = (first + index).flatten()
        return add_rows(grad.reshape(-1, d), rows, b * n).view(b, n, d), None


def gather_tokens(x: Tensor, index: Tensor) -> Tensor:
    """Gather tokens of every clip.

    Args:
        x: tokens, [B, N, D], any floating dtype, any strides.
        index: token of each output row, [B, K], int32 or int64, in 0 … N - 1.

    Returns:
        [B, K, D], dtype of x. Differentiable in x; duplicates in index add up in a fixed order
        on CPU (on CUDA in any order).

    Raises:
        ValueError: wrong number of dimensions, batch sizes that differ, an index of another dtype
            or (on CPU) outside 0 … N - 1.
    """
    require(x.ndim == 3, f"x: found shape {tuple(x.shape)}, expected [B, N, D]")
    require(
        index.ndim == 2 and index.shape[0] == x.shape[0],
        f"index: found shape {tuple(index.shape)}, expected [{x.shape[0]}, K]",
    )
    require_index("index", index, x.shape[1])
    return _GatherTokens.apply(x, index)


def apply_masks(x: Tensor, masks: Sequence[Tensor], concat: bool = True) -> Tensor | list[Tensor]:
    """Gather the tokens of several masks over the same x, as public JEPA code calls it.

    Args:
        x: tokens, [B, N, D].
        masks: for each mask the kept tokens, [B, K_i].
        concat: concatenate along the batch (needs equal K_i).

    Returns:
        [len(masks) * B, K, D], mask-major; with concat=False a list of [B, K_i, D].

    Raises:
        ValueError: as `gather_tokens`; no mask; concat with unequal K_i.
    """
    require(len(masks) > 0, "masks: found an empty list, expected at least one [B, K] index")
    gathered = [gather_tokens(x, mask) for mask in masks]
    if not concat:
        return gathered
    lengths = sorted({g.shape[1] for g in gathered})
    require(
        len(lengths) == 1,
        f"masks: found {lengths} tokens a clip, expected one length; pass concat=False",
    )
    return torch.cat(gathered)
