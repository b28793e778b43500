"""Triton kernels of `predictor_tokens`, and their launches."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vjepa_fast.kernels._checks import require
from vjepa_fast.kernels._dispatch import LAUNCH
from vjepa_fast.kernels._rows import MAX_ROWS, row_tile

CHUNK = 128  # rows that one program adds up for a mask token's gradient


@triton.jit(do_not_specialize=["rows", "context_rows", "specs", "positions"])
def predictor_tokens_kernel(
    p_context,
    p_pos,
    p_mask_tokens,
    p_source,
    p_position,
    p_out,
    rows,
    context_rows,
    specs,
    positions,
    stride_context,
    stride_context_d,
    stride_pos,
    stride_pos_d,
    stride_mask_tokens,
    stride_mask_tokens_d,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Rows from either table plus positions; NaN where an index is outside its range."""
    blocks: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    o_row = tl.program_id(0) // blocks * ROWS + tl.arange(0, ROWS)
    o_d = (tl.program_id(0) % blocks * BLOCK_D + tl.arange(0, BLOCK_D))[None, :]
    o_wide = o_d.to(tl.int64)
    m_row, m_d = o_row < rows, o_d < D
    source = tl.load(p_source + o_row, m_row, other=-1).to(tl.int64)
    position = tl.load(p_position + o_row, m_row, other=-1).to(tl.int64)
    spec = source - context_rows
    m_context = (source >= 0) & (source < context_rows)
    m_spec = (spec >= 0) & (spec < specs)
    m_position = (position >= 0) & (position < positions) & (m_context | m_spec)
    p = p_context + source[:, None] * stride_context + o_wide * stride_context_d
    b_context = tl.load(p, m_context[:, None] & m_d, other=0).to(tl.float32)
    p = p_mask_tokens + spec[:, None] * stride_mask_tokens + o_wide * stride_mask_tokens_d
    b_mask_token = tl.load(p, m_spec[:, None] & m_d, other=0).to(tl.float32)
    p = p_pos + position[:, None] * stride_pos + o_wide * stride_pos_d
    b_pos = tl.load(p, m_position[:, None] & m_d, other=float("nan")).to(tl.float32)
    p = p_out + o_row.to(tl.int64)[:, None] * D + o_d
    tl.store(p, b_context + b_mask_token + b_pos, m_row[:, None] & m_d)


@triton.jit(do_not_specialize=["rows", "context_rows"])
def add_chunks_kernel(
    p_grad,
    p_source,
    p_partial,
    rows,
    context_rows,
    stride_row,
    stride_d,
    SPECS: tl.constexpr,
    D: tl.constexpr,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Per chunk of rows and mask token: the sum of the rows that hold it, [chunks, specs, D]."""
    blocks: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    i_chunk = tl.program_id(0) // (blocks * SPECS)
    i_spec = tl.program_id(0) // blocks % SPECS
    o_d = tl.program_id(0) % blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    m_d = o_d < D
    b_sum = tl.zeros([ROWS, BLOCK_D], tl.float32)
    for i in range(CHUNK // ROWS):
        o_row = i_chunk * CHUNK + i * ROWS + tl.arange(0, ROWS)
        source = tl.load(p_source + o_row, o_row < rows, other=-1).to(tl.int64)
        p = p_grad + o_row.to(tl.int64)[:, None] * stride_row
        p += o_d.to(tl.int64)[None, :] * stride_d
        m = (source == context_rows + i_spec)[:, None] & m_d[None, :]
        b_sum += tl.load(p, m, other=0).to(tl.float32)
    p = p_partial + (i_chunk.to(tl.int64) * SPECS + i_spec) * D + o_d
    tl.store(p, tl.sum(b_sum, 0), m_d)


@triton.jit(do_not_specialize=["chunks"])
def add_partials_kernel(
    p_partial,
    p_out,
    chunks,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum over the chunks, in order: [chunks, SIZE] → [SIZE]."""
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    b_sum = tl.zeros([ROWS, BLOCK], tl.float32)
    for start in range(0, chunks, ROWS):
        o_row = start + tl.arange(0, ROWS)
        p = p_partial + o_row.to(tl.int64)[:, None] * SIZE + o[None, :]
        b_sum += tl.load(p, (o_row < chunks)[:, None] & (o < SIZE)[None, :], other=0)
    tl.store(p_out + o, tl.sum(b_sum, 0), o < SIZE)


def launch_predictor_tokens(
    context: Tensor, pos: Tensor, mask_tokens: Tensor, source: Tensor, position: Tensor
) -> Tensor:
    """The op on Triton: one pass."""
    rows, width = len(source), context.shape[1]
    out = context.new_empty(rows, width)
    if out.numel() == 0:
        return out
    require(rows <= MAX_ROWS, f"source: found {rows} rows, expected at most {MAX_ROWS}")
    tile = row_tile(width, 4)  # the positions' fp32
    grid = (triton.cdiv(rows, tile["ROWS"]) * triton.cdiv(width, tile["BLOCK_D"]),)
    with torch.cuda.device_of(context):
        predictor_tokens_kernel[grid](
            context,
            pos,
            mask_tokens,
            source.contiguous(),
            position.contiguous(),
            out,
            rows,
            len(context),
            len(mask_tokens),
            len(pos),
            *context.stride(),
            *pos.stride(),
            *mask_tokens.stride(),
            D=width,
            **tile,
            **LAUNCH,
        )
    return out


def launch_sum_by_spec(grad: Tensor, source: Tensor, context_rows: int, specs: int) -> Tensor:
    """Gradient of the mask tokens on Triton, fp32 [M, P]: sums of chunks, then of these."""
    rows, width = grad.shape
    if rows == 0 or specs == 0 or width == 0:
        return grad.new_zeros(specs, width, dtype=torch.float32)
    chunks = triton.cdiv(rows, CHUNK)
    partial = grad.new_empty(chunks, specs, width, dtype=torch.float32)
    out = grad.new_empty(specs, width, dtype=torch.float32)
    tile = row_tile(width, 4)
    tile["ROWS"] = min(tile["ROWS"], CHUNK)
    blocks = triton.cdiv(width, tile["BLOCK_D"])
    with torch.cuda.device_of(grad):
        add_chunks_kernel[(chunks * specs * blocks,)](
            grad,
            source.contiguous(),
            partial,
            rows,
            context_rows,
            *grad.stride(),
            SPECS=specs,
            D=width,
            CHUNK=CHUNK,
            **tile,
            **LAUNCH,
        )
        add_partials_kernel[(triton.cdiv(specs * width, 32),)](
            partial, out, chunks, SIZE=specs * width, ROWS=64, BLOCK=32, **LAUNCH
        )
    return out
