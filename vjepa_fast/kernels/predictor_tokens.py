"""The predictor's input: projected context tokens and mask tokens, plus their positions."""

from __future__ import annotations

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
from vjepa_fast.kernels._rows import MAX_ROWS, row_tile
from vjepa_fast.kernels.gather_backward import add_rows, launch_scatter

CHUNK = 128  # rows that one program sums for a mask token's gradient


def predictor_tokens_reference(
    context: Tensor, pos: Tensor, mask_tokens: Tensor, source: Tensor, position: Tensor
) -> Tensor:
    """The specification of `predictor_tokens`, in plain PyTorch."""
    pool = torch.cat([context.float(), mask_tokens.float()])
    return (pool.index_select(0, source) + pos.index_select(0, position)).to(context.dtype)


def predictor_tokens_backward_reference(
    grad: Tensor, source: Tensor, context_rows: int, specs: int
) -> tuple[Tensor, Tensor]:
    """Gradients in context (dtype of grad) and mask tokens (fp32), in plain PyTorch."""
    is_context = source < context_rows
    # each mask token sums thousands of rows: a GEMM with one-hot rows sums in fp32
    spec = torch.arange(context_rows, context_rows + specs, device=source.device)
    one_hot = (source == spec[:, None]).float()
    with torch.autocast(grad.device.type, enabled=False):  # it would make the GEMM bf16
        mask_tokens = one_hot @ grad.float()
    if grad.device.type == "cpu":
        return add_rows(grad[is_context], source[is_context], context_rows), mask_tokens
    # boolean indexing is a host sync: rows of mask tokens go to an extra row, which is dropped
    rows = add_rows(grad, source.clamp(max=context_rows), context_rows + 1)
    return rows[:-1].clone(), mask_tokens


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
    """Context or mask token plus position; NaN where an index is outside its range."""
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
    """Per chunk of rows and mask token, the sum of the rows it went to: [chunks, specs, D]."""
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
    """One launch, see `predictor_tokens`."""
    rows, width = len(source), context.shape[1]
    out = context.new_empty(rows, width)
    if out.numel() == 0:
        return out
    require(rows <= MAX_ROWS, f"source: found {rows} rows, expected at most {MAX_ROWS}; split it")
    tile = row_tile(width, 4)  # positions are fp32
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
    """Gradient of the mask tokens, fp32 [M, P]: sums of chunks of rows, then their sum."""
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


@torch.library.custom_op(
    "vjepa_fast::predictor_tokens",
    mutates_args=(),
    schema="(Tensor context, Tensor pos, Tensor mask_tokens, Tensor source, Tensor position)"
    " -> Tensor",
)
def predictor_tokens_op(
    context: Tensor, pos: Tensor, mask_tokens: Tensor, source: Tensor, position: Tensor
) -> Tensor:
    """See `predictor_tokens`."""
    require_index("source", source, context.shape[0] + mask_tokens.shape[0])
    require_index("position", position, pos.shape[0])
    if use_triton("predictor_tokens", context):
        return launch_predictor_tokens(context, pos, mask_tokens, source, position)
    return predictor_tokens_reference(context, pos, mask_tokens, source, position)


@predictor_tokens_op.register_fake
def _(context, pos, mask_tokens, source, position):
    return context.new_empty(source.shape[0], context.shape[1])


@torch.library.custom_op(
    "vjepa_fast::predictor_tokens_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor source, SymInt context_rows, SymInt specs) -> (Tensor, Tensor)",
)
def predictor_tokens_backward_op(
    grad: Tensor, source: Tensor, context_rows: int, specs: int
) -> tuple[Tensor, Tensor]:
    """grad [R, P] → gradients of context [Rc, P], dtype of grad, and of mask tokens, fp32 [M, P].

    Both are summed in a fixed order.
    """
    if use_triton("predictor_tokens_backward", grad):
        context = launch_scatter(grad, [source.unsqueeze(0)], 1, context_rows).squeeze(0)
        return context, launch_sum_by_spec(grad, source, context_rows, specs)
    return predictor_tokens_backward_reference(grad, source, context_rows, specs)


@predictor_tokens_backward_op.register_fake
def _(grad, source, context_rows, specs):
    width = grad.shape[1]
    return grad.new_empty(context_rows, width), grad.new_empty(specs, width, dtype=torch.float32)


def _setup(ctx, inputs, output) -> None:
    context, _, mask_tokens, source, _ = inputs
    ctx.save_for_backward(source)
    ctx.rows, ctx.specs, ctx.mask_dtype = len(context), len(mask_tokens), mask_tokens.dtype


def _backward(ctx, grad: Tensor):
    (source,) = ctx.saved_tensors
    context, mask_tokens = predictor_tokens_backward_op(grad, source, ctx.rows, ctx.specs)
    return context, None, mask_tokens.to(ctx.mask_dtype), None, None


predictor_tokens_op.register_autograd(_backward, setup_context=_setup)


def predictor_tokens(
    context: Tensor, pos: Tensor, mask_tokens: Tensor, source: Tensor, position: Tensor
) -> Tensor:
    """Concatenate context and mask tokens of every sequence, and add positions (paper, 3.1).

    Args:
        context: encoder output projected to the predictor's width, [Rc, P].
        pos: position table, fp32 [N, P].
        mask_tokens: one learned token per mask spec, [M, P].
        source: content of each output row, [R] int32 or int64: i < Rc is context row i, Rc + m is
            the mask token of spec m.
        position: position of each output row, a token in 0 … N - 1, [R] int32 or int64.

    Returns:
        [R, P], dtype of context, summed in fp32. Differentiable once, in context and mask_tokens.
        Gradients of repeated rows are summed in a fixed order (context rows on CUDA only by Triton:
        PyTorch uses atomics).

    Raises:
        ValueError: not a tensor; wrong width, length, dtype or device; on CPU, or under
            VJEPA_FAST_CHECK_INDEX=1, an index outside its range. Unchecked (CUDA), Triton returns
            NaN for such a row and takes no gradient from it, and the reference
            (VJEPA_FAST_KERNELS=reference) fails with PyTorch's device-side assertion.
    """
    tables = {"context": context, "pos": pos, "mask_tokens": mask_tokens}
    for name, value in (*tables.items(), ("source", source), ("position", position)):
        require_tensor(name, value)
    require(
        context.ndim == 2 and pos.ndim == 2 and mask_tokens.ndim == 2,
        f"context, pos, mask_tokens: found shapes {tuple(context.shape)}, {tuple(pos.shape)} and "
        f"{tuple(mask_tokens.shape)}, expected [Rc, P], [N, P] and [M, P]",
    )
    widths = (context.shape[1], pos.shape[1], mask_tokens.shape[1])
    require(
        len(set(widths)) == 1,
        f"context, pos, mask_tokens: found widths {widths}, expected one width",
    )
    require(
        source.ndim == 1 and source.shape == position.shape,
        f"source, position: found shapes {tuple(source.shape)} and {tuple(position.shape)}, "
        "expected [R] each",
    )
    for name, table in tables.items():
        require_floating(name, table)
        require_same_device(name, table, "source", source)
    require_integers("source", source)
    require_integers("position", position)
    require_same_device("position", position, "source", source)
    return predictor_tokens_op(context, pos, mask_tokens, source, position)
