"""The backward of every gather: a scatter whose sums have a fixed order.

`inverse_kernel` finds for each token the first and last row that came from it, then
`scatter_kernel` writes each row of the result once. Masks never repeat a token, so first = last:
that is the fast path, one load per mask. `sum_of_row`, `next_position` and the while loop at the
end of `scatter_kernel` serve indices with repeats, which other callers of `gather_tokens` may have;
they cost nothing if there are none.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vjepa_fast.kernels._dispatch import LAUNCH, require, use_triton
from vjepa_fast.kernels._rows import MAX_ROWS, flat_rows, locate, pack_indices, row_tile


def add_rows(values: Tensor, rows: Tensor, size: int) -> Tensor:
    """The specification: sum values[i] into row rows[i] of a zero tensor, in plain PyTorch.

    On CPU it is deterministic, which PyTorch's own backward of indexing is not (it adds
    atomically): unique rows are copied, duplicates are added in order. On CUDA it is deterministic
    for unique rows.

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


@triton.jit(do_not_specialize=["B", "N", "total"])
def inverse_kernel(
    p_first, p_last, indices, odd_sizes, B, N, total, MASKS: tl.constexpr, ROWS: tl.constexpr
):
    """First and last position of each token in its clip's row of each mask.

    Both tables are [masks, B, N] int32 and start at -1. p_last gets the last position, p_first gets
    K - 1 - first position, so that both are maxima.
    """
    o_row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    mask, size, clip, position, token = locate(o_row, indices, odd_sizes, B, MASKS)
    m = (o_row < total) & (token >= 0) & (token < N)
    o = (mask.to(tl.int64) * B + clip) * N + token
    tl.atomic_max(p_first + o, size - 1 - position, m, sem="relaxed")
    tl.atomic_max(p_last + o, position, m, sem="relaxed")


@triton.jit
def next_position(p_index, token, position, last, SCAN: tl.constexpr):
    """The next position of the token after `position`, up to `last`; last + 1 if there is none."""
    found = last + 1
    start = position + 1
    while (start <= last) & (found > last):
        o = start + tl.arange(0, SCAN)
        m = o <= last
        here = m & (tl.load(p_index + o, m, other=-1).to(tl.int64) == token)
        found = tl.min(tl.where(here, o, last + 1), 0)
        start += SCAN
    return found


@triton.jit
def sum_of_row(
    p_grad,
    p_first,
    p_last,
    indices,
    odd_sizes,
    B,
    N,
    row,
    stride_row,
    stride_d,
    o_d,
    m_d,
    MASKS: tl.constexpr,
    SUM: tl.constexpr,
    SCAN: tl.constexpr,
):
    """Sum of all rows that came from one token, mask by mask and in order."""
    clip = row // N
    token = (row - clip * N).to(tl.int64)
    b_sum = tl.zeros(o_d.shape, SUM)
    start = 0
    for i in tl.static_range(MASKS):
        size = odd_sizes[i] >> 1
        o = tl.cast(B * N, tl.int64) * i + row
        position = size - 1 - tl.load(p_first + o)
        last = tl.load(p_last + o)
        while position <= last:
            source = (start + clip * size + position).to(tl.int64)
            b = tl.load(p_grad + source * stride_row + o_d.to(tl.int64) * stride_d, m_d, other=0)
            b_sum += b.to(SUM)
            position = next_position(indices[i] + clip * size, token, position, last, SCAN)
        start += B * size
    return b_sum


@triton.jit(do_not_specialize=["B", "N"])
def scatter_kernel(
    p_grad,
    p_first,
    p_last,
    indices,
    odd_sizes,
    p_out,
    B,
    N,
    stride_row,
    stride_d,
    MASKS: tl.constexpr,
    D: tl.constexpr,
    SUM: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SCAN: tl.constexpr,
):
    """Write each row of the result once; a token that no mask gathered gets zeros."""
    blocks: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    o_row = tl.program_id(0) // blocks * ROWS + tl.arange(0, ROWS)
    o_d = tl.program_id(0) % blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    m_row, m_d = o_row < B * N, o_d < D
    clip = o_row // N
    b_sum = tl.zeros([ROWS, BLOCK_D], SUM)
    m_repeated = o_row < 0
    start = 0
    for i in tl.static_range(MASKS):
        size = odd_sizes[i] >> 1
        o = tl.cast(B * N, tl.int64) * i + o_row
        first = size - 1 - tl.load(p_first + o, m_row, other=-1)
        last = tl.load(p_last + o, m_row, other=-1)
        m_repeated |= first < last
        source = (start + clip * size + first).to(tl.int64)
        p_row = p_grad + source[:, None] * stride_row + o_d.to(tl.int64)[None, :] * stride_d
        b_sum += tl.load(p_row, (first == last)[:, None] & m_d[None, :], other=0).to(SUM)
        start += B * size
    p_row = p_out + o_row.to(tl.int64)[:, None] * D + o_d[None, :]
    tl.store(p_row, b_sum, (m_row & (m_repeated == 0))[:, None] & m_d[None, :])
    # repeated tokens, one by one
    nobody = B * N
    row = tl.min(tl.where(m_repeated, o_row, nobody), 0)
    while row < nobody:
        b_row = sum_of_row(
            p_grad, p_first, p_last, indices, odd_sizes, B, N, row,
            stride_row, stride_d, o_d, m_d, MASKS, SUM, SCAN,
        )  # fmt: skip
        tl.store(p_out + row.to(tl.int64) * D + o_d, b_row, m_d)
        row = tl.min(tl.where(m_repeated & (o_row > row), o_row, nobody), 0)


def launch_scatter(grad: Tensor, indices: list[Tensor], clips: int, tokens: int) -> Tensor:
    """[R, D], rows mask by mask → [clips, tokens, D], without a host sync."""
    rows, width = clips * tokens, grad.shape[1]
    require(rows <= MAX_ROWS, f"x: found {rows} rows, expected at most {MAX_ROWS}; split the batch")
    pointers, odd_sizes, total = pack_indices(indices)
    if total == 0 or rows == 0 or width == 0:
        return grad.new_zeros(clips, tokens, width)
    masks = len(pointers)
    out = grad.new_empty(clips, tokens, width)
    table = torch.full((2, masks, rows), -1, dtype=torch.int32, device=grad.device)
    with torch.cuda.device_of(grad):
        inverse_kernel[(triton.cdiv(total, 256),)](
            table[0],
            table[1],
            pointers,
            odd_sizes,
            clips,
            tokens,
            total,
            MASKS=masks,
            ROWS=256,
            **LAUNCH,
        )
        tile = row_tile(width, grad.element_size())
        # the compiler loads the rows of every mask before it adds the first
        tile["ROWS"] = max(1, tile["ROWS"] // max(1, triton.next_power_of_2(masks) // 2))
        blocks = triton.cdiv(width, tile["BLOCK_D"])
        scatter_kernel[(triton.cdiv(rows, tile["ROWS"]) * blocks,)](
            grad,
            table[0],
            table[1],
            pointers,
            odd_sizes,
            out,
            clips,
            tokens,
            *grad.stride(),
            MASKS=masks,
            D=width,
            SUM=tl.float64 if grad.dtype == torch.float64 else tl.float32,
            **tile,
            SCAN=128,
            maxnreg=128,  # without it ptxas limits itself to 32 or 40 registers and spills
            **LAUNCH,
        )
    return out


@torch.library.custom_op(
    "vjepa_fast::scatter_tokens",
    mutates_args=(),
    schema="(Tensor grad, Tensor[] indices, SymInt clips, SymInt tokens) -> Tensor",
)
def scatter_tokens_op(grad: Tensor, indices: list[Tensor], clips: int, tokens: int) -> Tensor:
    """Sum the rows of several masks into their tokens, mask by mask and in order.

    Args:
        grad: [Σ clips · K_i, D], rows mask by mask.
        indices: for each mask the token of each row, [clips, K_i] int32 or int64. Outside
            0 … tokens - 1, Triton skips the row and PyTorch raises (on CUDA: asserts).

    Returns:
        [clips, tokens, D], dtype of grad; sums in fp32 (fp64 for fp64), rounded once.
    """
    if use_triton("scatter_tokens", grad):
        return launch_scatter(grad, indices, clips, tokens)
    rows = flat_rows(indices, clips, tokens)
    return add_rows(grad, rows, clips * tokens).view(clips, tokens, grad.shape[1])


@scatter_tokens_op.register_fake
def _(grad: Tensor, indices: list[Tensor], clips: int, tokens: int) -> Tensor:
    return grad.new_empty(clips, tokens, grad.shape[1])


def _save_indices(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[1])


def _backward(ctx, grad: Tensor):
    indices = list(ctx.saved_tensors)
    # looked up by name: gather.py imports this file
    return torch.ops.vjepa_fast.gather_tokens(grad, indices), [None] * len(indices), None, None


scatter_tokens_op.register_autograd(_backward, setup_context=_save_indices)
