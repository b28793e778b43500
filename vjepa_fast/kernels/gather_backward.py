"""The backward of every gather: add rows back to where they came from, in a fixed order."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vjepa_fast.kernels._checks import require
from vjepa_fast.kernels._dispatch import LAUNCH, use_triton
from vjepa_fast.kernels._rows import MAX_ROWS, flat_rows, locate, pack_indices, row_tile


def add_rows(values: Tensor, rows: Tensor, size: int) -> Tensor:
    """The specification: sum values[i] into row rows[i] of a zero tensor, in plain PyTorch.

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


@triton.jit(do_not_specialize=["B", "N", "total"])
def inverse_kernel(
    p_first, p_last, indices, odd_sizes, B, N, total, MASKS: tl.constexpr, ROWS: tl.constexpr
):
    """Where in its clip's part of a mask a token stands first and last.

    Tables [masks, B, N] int32, filled with -1 before: last place, and length - 1 - first place.
    """
    o_row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    mask, size, clip, place, token = locate(o_row, indices, odd_sizes, B, MASKS)
    m = (o_row < total) & (token >= 0) & (token < N)
    o = (mask.to(tl.int64) * B + clip) * N + token
    tl.atomic_max(p_first + o, size - 1 - place, m, sem="relaxed")
    tl.atomic_max(p_last + o, place, m, sem="relaxed")


@triton.jit
def next_place(p_index, token, place, last, SCAN: tl.constexpr):
    """The first place after `place`, up to `last`, at which the token stands; else last + 1."""
    found = last + 1
    start = place + 1
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
    """All rows that came from one token, added mask by mask and in order."""
    clip = row // N
    token = (row - clip * N).to(tl.int64)
    b_sum = tl.zeros(o_d.shape, SUM)
    start = 0
    for i in tl.static_range(MASKS):
        size = odd_sizes[i] >> 1
        o = tl.cast(B * N, tl.int64) * i + row
        place = size - 1 - tl.load(p_first + o)
        last = tl.load(p_last + o)
        while place <= last:
            source = (start + clip * size + place).to(tl.int64)
            b = tl.load(p_grad + source * stride_row + o_d.to(tl.int64) * stride_d, m_d, other=0)
            b_sum += b.to(SUM)
            place = next_place(indices[i] + clip * size, token, place, last, SCAN)
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
    """Rows of the result through the inverse: each is written once, zero where nothing points."""
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
    # one by one, which costs nothing where no token is repeated
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
    """Scatter on Triton: [R, D], rows mask by mask → [clips, tokens, D]. No host sync."""
    rows, width = clips * tokens, grad.shape[1]
    require(rows <= MAX_ROWS, f"x: found {rows} rows, expected at most {MAX_ROWS}")
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
        # every mask's rows are loaded before the first is added
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
            maxnreg=128,  # without a bound ptxas spills to stay at 32 or 40
            **LAUNCH,
        )
    return out


@torch.library.custom_op(
    "vjepa_fast::scatter_tokens",
    mutates_args=(),
    schema="(Tensor grad, Tensor[] indices, SymInt clips, SymInt tokens) -> Tensor",
)
def scatter_tokens(grad: Tensor, indices: list[Tensor], clips: int, tokens: int) -> Tensor:
    """Add rows of several masks back to their tokens, mask by mask and in order.

    Args:
        grad: [Σ clips · K_i, D], rows mask by mask.
        indices: for each mask the token of each row, [clips, K_i] int32 or int64. Outside
            0 … tokens - 1 Triton leaves a row out and PyTorch raises (on CUDA: asserts).

    Returns:
        [clips, tokens, D], dtype of grad; sums in fp32 (fp64 for fp64), rounded once.
    """
    if use_triton("scatter_tokens", grad):
        return launch_scatter(grad, indices, clips, tokens)
    rows = flat_rows(indices, clips, tokens)
    return add_rows(grad, rows, clips * tokens).view(clips, tokens, grad.shape[1])


@scatter_tokens.register_fake
def _(grad: Tensor, indices: list[Tensor], clips: int, tokens: int) -> Tensor:
    return grad.new_empty(clips, tokens, grad.shape[1])
