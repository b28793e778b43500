"""Gather tokens by index: x[b, index[b, k]] for every clip b."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import triton
import triton.language as tl
from torch import Tensor

from vjepa_fast.kernels._dispatch import (
    LAUNCH,
    require,
    require_floating,
    require_index,
    require_integers,
    require_same_device,
    require_tensor,
    use_triton,
)
from vjepa_fast.kernels._rows import flat_rows, locate, pack_indices, row_tile
from vjepa_fast.kernels.gather_backward import scatter_tokens_op


def gather_tokens_reference(x: Tensor, index: Tensor) -> Tensor:
    """The specification of `gather_tokens`, in plain PyTorch."""
    return gather_rows_reference(x, [index]).view(*index.shape, x.shape[2])


def gather_rows_reference(x: Tensor, indices: list[Tensor]) -> Tensor:
    """Gather for several masks: [Σ B · K_i, D], mask by mask, in new memory."""
    clips, tokens, _ = x.shape
    rows = flat_rows(indices, clips, tokens)
    if x.stride(0) == tokens * x.stride(1):
        return x.flatten(0, 1).index_select(0, rows)
    return x[rows // tokens, rows % tokens]  # flattening this x would copy it


@triton.jit(do_not_specialize=["B", "N", "total"])
def gather_kernel(
    p_x,
    indices,
    odd_sizes,
    p_out,
    B,
    N,
    total,
    stride_clip,
    stride_token,
    stride_d,
    MASKS: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Copy rows of x. A row whose token is outside the clip is not read and becomes NaN."""
    blocks: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    o_row = tl.program_id(0) // blocks * ROWS + tl.arange(0, ROWS)
    o_d = tl.program_id(0) % blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    _, _, clip, _, token = locate(o_row, indices, odd_sizes, B, MASKS)
    m_row, m_d = o_row < total, o_d < D
    m_token = m_row & (token >= 0) & (token < N)
    p_row = p_x + (clip.to(tl.int64) * stride_clip + token * stride_token)[:, None]
    p = p_row + o_d.to(tl.int64)[None, :] * stride_d
    b = tl.load(p, m_token[:, None] & m_d[None, :], other=float("nan"))
    p_row = p_out + o_row.to(tl.int64)[:, None] * D + o_d[None, :]
    tl.store(p_row, b, m_row[:, None] & m_d[None, :])


def launch_gather(x: Tensor, indices: list[Tensor]) -> Tensor:
    """One launch for all masks: x [B, N, D], indices [B, K_i] → [Σ B · K_i, D], mask by mask."""
    clips, tokens, width = x.shape
    pointers, odd_sizes, total = pack_indices(indices)
    out = x.new_empty(total, width)
    if out.numel() == 0:
        return out
    tile = row_tile(width, x.element_size())
    grid = (triton.cdiv(total, tile["ROWS"]) * triton.cdiv(width, tile["BLOCK_D"]),)
    with torch.cuda.device_of(x):
        gather_kernel[grid](
            x,
            pointers,
            odd_sizes,
            out,
            clips,
            tokens,
            total,
            *x.stride(),
            MASKS=len(pointers),
            D=width,
            **tile,
            **LAUNCH,
        )
    return out


@torch.library.custom_op(
    "vjepa_fast::gather_tokens",
    mutates_args=(),
    schema="(Tensor x, Tensor[] indices) -> Tensor",
)
def gather_tokens_op(x: Tensor, indices: list[Tensor]) -> Tensor:
    """x [B, N, D], indices [B, K_i] → [Σ B · K_i, D], mask by mask."""
    for i, index in enumerate(indices):
        require_index("index" if len(indices) == 1 else f"masks[{i}]", index, x.shape[1])
    if use_triton("gather_tokens", x):
        return launch_gather(x, indices)
    return gather_rows_reference(x, indices)


@gather_tokens_op.register_fake
def _(x: Tensor, indices: list[Tensor]) -> Tensor:
    return x.new_empty(sum(index.numel() for index in indices), x.shape[2])


def _save_indices(ctx, inputs, output) -> None:
    x, indices = inputs
    ctx.save_for_backward(*indices)
    ctx.clips, ctx.tokens = x.shape[:2]


def _backward(ctx, grad: Tensor):
    indices = list(ctx.saved_tensors)
    return scatter_tokens_op(grad, indices, ctx.clips, ctx.tokens), [None] * len(indices)


gather_tokens_op.register_autograd(_backward, setup_context=_save_indices)


def _check_tokens(x: Tensor) -> None:
    require_tensor("x", x)
    require(x.ndim == 3, f"x: found shape {tuple(x.shape)}, expected [B, N, D]")
    require_floating("x", x)


def _check_index(x: Tensor, name: str, index: Tensor) -> None:
    require_tensor(name, index)
    require(
        index.ndim == 2 and index.shape[0] == x.shape[0],
        f"{name}: found shape {tuple(index.shape)}, expected [{x.shape[0]}, K]",
    )
    require_integers(name, index)
    require_same_device(name, index, "x", x)


def gather_tokens(x: Tensor, index: Tensor) -> Tensor:
    """Gather tokens of every clip.

    Args:
        x: tokens, [B, N, D], fp64, fp32, bf16 or fp16, any strides.
        index: token of each output row, [B, K], int32 or int64, in 0 … N - 1.

    Returns:
        [B, K, D], contiguous, dtype of x. It may be changed in place, also before a backward.
        Differentiable twice in x. Gradients of duplicates in index are summed in a fixed order
        (on CUDA only by Triton: PyTorch uses atomics).

    Raises:
        ValueError: not a tensor; wrong shape, dtype or device; on CPU, or under
            VJEPA_FAST_CHECK_INDEX=1, an index outside 0 … N - 1. Unchecked (CUDA), Triton returns
            NaN for such a row and gives it no gradient, and the reference
            (VJEPA_FAST_KERNELS=reference) fails with PyTorch's device-side assertion.
    """
    _check_tokens(x)
    _check_index(x, "index", index)
    return gather_tokens_op(x, [index]).view(*index.shape, x.shape[2])


def _check_mask(x: Tensor, name: str, mask: Tensor) -> None:
    """`_check_index`, and what the public code's `apply_masks` would do with too few rows."""
    require_tensor(name, mask)
    clips, rows = x.shape[0], 1 if mask.ndim == 1 else mask.shape[0]
    if mask.ndim in (1, 2) and 0 < rows < clips:
        taken = "clip 0" if rows == 1 else f"clips 0 to {rows - 1}"
        raise ValueError(
            f"{name}: found shape {tuple(mask.shape)}, expected [{clips}, K], a row for each clip "
            f"(the public JEPA code would silently take the tokens of {taken} alone); pass "
            f"mask.expand({clips}, -1) for the same tokens of every clip, or [torch.stack(masks)] "
            "if the list has one [K] mask for each clip"
        )
    _check_index(x, name, mask)


def apply_masks(x: Tensor, masks: Iterable[Tensor], concat: bool = True) -> Tensor | list[Tensor]:
    """Gather the tokens of several masks, with the signature of the public JEPA code.

    One launch for all masks forward, one backward.

    Args:
        x: tokens, [B, N, D].
        masks: for each mask the kept tokens, [B, K_i].
        concat: concatenate along the batch (needs equal K_i).

    Returns:
        [len(masks) * B, K, D], mask-major; with concat=False a list of [B, K_i, D]. Each may be
        changed in place, also before a backward.

    Raises:
        ValueError: as for `gather_tokens`; no masks; concat with unequal K_i. A mask of shape [K]
            or with fewer than B rows is one: the public code would take the tokens of the first
            clips alone and say nothing.
    """
    masks = list(masks)
    require(len(masks) > 0, "masks: found an empty list, expected at least one [B, K] index")
    _check_tokens(x)
    for i, mask in enumerate(masks):
        _check_mask(x, f"masks[{i}]", mask)
    clips, width = x.shape[0], x.shape[2]
    lengths = [mask.shape[1] for mask in masks]
    if concat:
        require(
            len(set(lengths)) == 1,
            f"masks: found {sorted(set(lengths))} tokens a clip, expected one length; pass "
            "concat=False",
        )
        return gather_tokens_op(x, masks).view(len(masks) * clips, lengths[0], width)
    # autograd treats the outputs of `split` as views and forbids in-place changes of them
    parts = torch.unsafe_split_with_sizes(gather_tokens_op(x, masks), [clips * k for k in lengths])
    return [part.view(clips, k, width) for part, k in zip(parts, lengths, strict=True)]
