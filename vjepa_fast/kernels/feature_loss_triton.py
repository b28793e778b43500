"""Triton kernels of `masked_feature_loss`: weights, rows, their sum, and the backward's scaling."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vjepa_fast.kernels._dispatch import LAUNCH

SUM_BLOCK, SUM_WARPS = 4096, 16
SCALE_BLOCK, SCALE_WARPS = 4096, 8


@triton.jit
def weights_kernel(
    p_seqlens,
    p_specs,
    p_weights,
    sequences,
    rows,
    width,
    stride_seqlens,
    stride_specs,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Program i writes the weight of each row of sequence i, the last one also of rows of none.

    All are NaN unless all lengths are positive and sum to the rows.
    Specs are counted by their first sequences, in tiles of BLOCK x BLOCK comparisons.
    """
    i = tl.program_id(0)
    spec = tl.load(p_specs + i * stride_specs)
    length = tl.load(p_seqlens + i * stride_seqlens).to(tl.int64)
    start, total, shortest = length * 0, length * 0, length
    clips, specs = 0, 0
    for i_block in range(0, sequences, BLOCK):
        o = i_block + tl.arange(0, BLOCK)
        b_specs = tl.load(p_specs + o * stride_specs, o < sequences, 0)
        b_lengths = tl.load(p_seqlens + o * stride_seqlens, o < sequences, 1).to(tl.int64)
        start += tl.sum(tl.where(o < i, b_lengths, 0))
        total += tl.sum(tl.where(o < sequences, b_lengths, 0))
        shortest = tl.minimum(shortest, tl.min(b_lengths))
        clips += tl.sum(((b_specs == spec) & (o < sequences)).to(tl.int32))
        b_earlier = tl.zeros([BLOCK], tl.int32)
        for i_other in range(0, i_block + 1, BLOCK):
            o_other = i_other + tl.arange(0, BLOCK)
            b_others = tl.load(p_specs + o_other * stride_specs, o_other < sequences, 0)
            m_same = (b_specs[:, None] == b_others[None, :]) & (o_other[None, :] < o[:, None])
            b_earlier += tl.sum(m_same.to(tl.int32), 1)
        specs += tl.sum(((b_earlier == 0) & (o < sequences)).to(tl.int32))
    weight = 1.0 / (clips.to(tl.float32) * specs.to(tl.float32) * length.to(tl.float32) * width)
    weight = tl.where((shortest > 0) & (total == rows), weight, float("nan"))
    end = tl.minimum(start + length, rows)
    for i_row in range(tl.maximum(start, 0), end, ROWS):
        o = i_row + tl.arange(0, ROWS)
        tl.store(p_weights + o, tl.zeros([ROWS], tl.float32) + weight, o < end)
    if i == sequences - 1:
        for i_row in range(tl.maximum(end, 0), rows, ROWS):
            o = i_row + tl.arange(0, ROWS)
            tl.store(p_weights + o, tl.full([ROWS], float("nan"), tl.float32), o < rows)


@triton.jit
def rows_kernel(
    p_prediction,
    p_features,
    p_rows,
    p_weights,
    p_losses,
    p_gradient,
    features,
    exponent,
    eps,
    scale,
    stride_prediction,
    stride_prediction_column,
    stride_features,
    stride_features_column,
    stride_rows,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    EXPONENT: tl.constexpr,
    NORMALIZE: tl.constexpr,
):
    """Program i: weighted loss of row i, and its scaled gradient.

    EXPONENT is 1, 2, or 0 for any other, which `exponent` then holds. A row outside the features
    is not read and gives NaN.
    """
    i = tl.program_id(0).to(tl.int64)
    row = tl.load(p_rows + i * stride_rows).to(tl.int64)
    weight = tl.load(p_weights + i)
    inside = (row >= 0) & (row < features)
    o = tl.arange(0, BLOCK)
    m = o < D
    o_columns = o.to(tl.int64)
    p_prediction += i * stride_prediction + o_columns * stride_prediction_column
    p_features += row * stride_features + o_columns * stride_features_column
    b_prediction = tl.load(p_prediction, m, 0.0).to(tl.float32)
    b_target = tl.load(p_features, o < tl.where(inside, D, 0), 0.0).to(tl.float32)
    if NORMALIZE:
        b_target = tl.where(m, b_target - tl.sum(b_target) / D, 0.0)
        b_target *= tl.rsqrt(tl.sum(b_target * b_target) / D + eps)
    b_target = tl.where(inside, b_target, float("nan"))
    b_difference = b_prediction - b_target
    b_size = tl.abs(b_difference)
    if EXPONENT == 1:
        b_loss = b_size
        b_slope = tl.where(b_difference > 0, 1.0, tl.where(b_difference < 0, -1.0, b_difference))
    elif EXPONENT == 2:
        b_loss = b_size * b_size
        b_slope = b_difference
    else:
        b_power = tl.exp2((exponent - 1.0) * tl.log2(b_size))
        b_loss = b_power * b_size
        b_slope = tl.where(b_difference < 0, -b_power, b_power)
    tl.store(p_losses + i, tl.sum(tl.where(m, b_loss, 0.0)) * (weight / exponent))
    b_gradient = b_slope * (weight * scale)
    p_gradient += i * D + o
    tl.store(p_gradient, b_gradient.to(p_gradient.dtype.element_ty), m)


@triton.jit
def sum_kernel(p_values, p_sum, size, BLOCK: tl.constexpr):
    """Sum in an order that only the size decides."""
    b_sum = tl.zeros([BLOCK], tl.float32)
    for i_block in range(0, size, BLOCK):
        o = i_block + tl.arange(0, BLOCK)
        b_sum += tl.load(p_values + o, o < size, 0.0)
    tl.store(p_sum, tl.sum(b_sum))


@triton.jit
def scale_kernel(p_values, p_factor, p_out, factor, size, BLOCK: tl.constexpr):
    """values · (p_factor[0] · factor), in fp32."""
    o = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    b_values = tl.load(p_values + o, o < size).to(tl.float32)
    b_values *= tl.load(p_factor).to(tl.float32) * factor
    tl.store(p_out + o, b_values.to(p_out.dtype.element_ty), o < size)


def rows_warps(width: int) -> int:
    """Warps of a program of `rows_kernel`: 16 elements of a row a thread."""
    return min(max(triton.next_power_of_2(width) // 512, 1), 16)


def launch_loss(
    prediction: Tensor,
    features: Tensor,
    rows: Tensor,
    seqlens: Tensor,
    spec_ids: Tensor,
    exponent: float,
    normalize: bool,
    eps: float,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """The loss, fp32 scalar, and its gradient times `scale`, [R, D] in the prediction's dtype."""
    count, width = prediction.shape
    weights = torch.empty(count, dtype=torch.float32, device=prediction.device)
    losses = torch.empty_like(weights)
    loss = torch.empty((), dtype=torch.float32, device=prediction.device)
    gradient = torch.empty(count, width, dtype=prediction.dtype, device=prediction.device)
    if not gradient.numel():
        return loss.fill_(float("nan")), gradient  # a mean of nothing
    with torch.cuda.device_of(prediction):
        weights_kernel[(len(seqlens),)](
            seqlens,
            spec_ids,
            weights,
            len(seqlens),
            count,
            float(width),
            seqlens.stride(0),
            spec_ids.stride(0),
            BLOCK=64,
            ROWS=1024,
            **LAUNCH,
        )
        rows_kernel[(count,)](
            prediction,
            features,
            rows,
            weights,
            losses,
            gradient,
            features.shape[0],
            exponent,
            eps,
            scale,
            *prediction.stride(),
            *features.stride(),
            rows.stride(0),
            D=width,
            BLOCK=triton.next_power_of_2(width),
            EXPONENT=int(exponent) if exponent in (1.0, 2.0) else 0,
            NORMALIZE=normalize,
            num_warps=rows_warps(width),
            **LAUNCH,
        )
        sum_kernel[(1,)](
            losses,
            loss,
            count,
            BLOCK=SUM_BLOCK,
            num_warps=SUM_WARPS,
            **LAUNCH,
        )
    return loss, gradient


def launch_scale(scaled: Tensor, grad_loss: Tensor, factor: float) -> Tensor:
    """scaled · (grad_loss · factor), scaled contiguous."""
    out = torch.empty_like(scaled)
    if out.numel():
        with torch.cuda.device_of(scaled):
            scale_kernel[(triton.cdiv(out.numel(), SCALE_BLOCK),)](
                scaled,
                grad_loss,
                out,
                factor,
                out.numel(),
                BLOCK=SCALE_BLOCK,
                num_warps=SCALE_WARPS,
                **LAUNCH,
            )
    return out
