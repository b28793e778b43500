"""The feature loss: |prediction - layer_norm(feature)|^p / p, mean over clips, then over specs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from vjepa_fast.kernels._dispatch import (
    LAUNCH,
    checks_index_values,
    require,
    require_floating,
    require_index,
    require_integers,
    require_same_device,
    use_triton,
)

FEATURE_NORM_EPS = 1e-5
SUM_BLOCK, SUM_WARPS = 4096, 16
SCALE_BLOCK, SCALE_WARPS = 4096, 8


def row_weights(seqlens: Tensor, spec_ids: Tensor, rows: int, width: int) -> Tensor:
    """Weight of each target row in the loss, fp32 [R]: 1 / (specs · clips · targets · width)."""
    # comparisons instead of bincount, which is a host sync on CUDA
    clips = (spec_ids[:, None] == spec_ids[None, :]).sum(1).float()
    specs = clips.reciprocal().sum().round()
    weight = 1.0 / (clips * specs * seqlens * width)
    return torch.repeat_interleave(weight, seqlens, output_size=rows)


def masked_feature_loss_reference(
    prediction: Tensor,
    features: Tensor,
    rows: Tensor,
    seqlens: Tensor,
    spec_ids: Tensor,
    exponent: float,
    normalize: bool,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The specification of `masked_feature_loss`, in plain PyTorch.

    Args: those of `masked_feature_loss`.

    Returns:
        the loss, fp32 scalar, and its gradient in the prediction, fp32 [R, D].
    """
    target = features.index_select(0, rows).float()  # unlike [rows], rejects negative indices
    if normalize:
        target = F.layer_norm(target, target.shape[-1:], eps=FEATURE_NORM_EPS)
    difference = prediction.float() - target
    weight = row_weights(seqlens.long(), spec_ids.long(), *prediction.shape)
    weight = weight if weights is None else weight * weights.float()
    size = difference.abs()
    loss = torch.dot(size.pow(exponent).sum(1) if exponent != 1.0 else size.sum(1), weight)
    slope = difference.sign() if exponent == 1.0 else difference.sign() * size.pow(exponent - 1)
    slope = torch.where(difference.isnan(), difference, slope)  # sign(NaN) would be 0
    return loss / exponent, slope * weight[:, None]


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
    """Program i writes the weight of each row of sequence i.

    The last program also writes NaN to the rows that belong to no sequence. All weights are NaN
    unless all lengths are positive and sum to the rows. Specs are counted by their first sequences,
    in tiles of BLOCK x BLOCK comparisons.
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

    EXPONENT is 1, 2, or 0 for any other value, which is in `exponent`. A row index outside the
    features is not read; its loss and gradient are NaN.
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
    """Sum in an order that depends on the size alone."""
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


def launch_loss(
    prediction: Tensor,
    features: Tensor,
    rows: Tensor,
    seqlens: Tensor,
    spec_ids: Tensor,
    exponent: float,
    normalize: bool,
    weights: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """The loss, fp32 scalar, and its gradient times `scale`, [R, D] in the prediction's dtype."""
    count, width = prediction.shape
    row_weight = torch.empty(count, dtype=torch.float32, device=prediction.device)
    losses = torch.empty_like(row_weight)
    loss = torch.empty((), dtype=torch.float32, device=prediction.device)
    gradient = torch.empty(count, width, dtype=prediction.dtype, device=prediction.device)
    if not gradient.numel():
        return loss.fill_(float("nan")), gradient  # a mean of nothing
    block = triton.next_power_of_2(width)
    warps = min(max(block // 512, 1), 16)  # 16 elements of a row a thread
    with torch.cuda.device_of(prediction):
        weights_kernel[(len(seqlens),)](
            seqlens, spec_ids, row_weight, len(seqlens), count, float(width),
            seqlens.stride(0), spec_ids.stride(0),
            BLOCK=64, ROWS=1024, **LAUNCH,
        )  # fmt: skip
        if weights is not None:
            row_weight.mul_(weights)
        rows_kernel[(count,)](
            prediction, features, rows, row_weight, losses, gradient,
            features.shape[0], exponent, FEATURE_NORM_EPS, scale,
            *prediction.stride(), *features.stride(), rows.stride(0),
            D=width, BLOCK=block,
            EXPONENT=int(exponent) if exponent in (1.0, 2.0) else 0, NORMALIZE=normalize,
            num_warps=warps, **LAUNCH,
        )  # fmt: skip
        sum_kernel[(1,)](losses, loss, count, BLOCK=SUM_BLOCK, num_warps=SUM_WARPS, **LAUNCH)
    return loss, gradient


def launch_scale(scaled: Tensor, grad_loss: Tensor, factor: float) -> Tensor:
    """scaled · (grad_loss · factor); `scaled` must be contiguous."""
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


def _gradient_scale(numel: int) -> float:
    """Power of two by which the stored gradient is scaled.

    The mean over 10⁷ values has slopes of 10⁻⁷, which fp16 rounds to 0; scaled, they are near 1.
    """
    return 2.0 ** numel.bit_length()


def _require_sequences(seqlens: Tensor, rows: int) -> None:
    """Reject lengths that don't sum to the rows, where `require_index` would check values."""
    if checks_index_values(seqlens):
        expected = f"expected positive lengths that sum to {rows}"
        shortest, total = int(seqlens.min()), int(seqlens.sum())
        require(shortest > 0, f"seqlens: found a length of {shortest}, {expected}")
        require(total == rows, f"seqlens: found {total} targets in all, {expected}")


@torch.library.custom_op(
    "vjepa_fast::masked_feature_loss",
    mutates_args=(),
    schema="(Tensor prediction, Tensor features, Tensor rows, Tensor seqlens, Tensor spec_ids, "
    "float exponent, bool normalize, Tensor? weights) -> (Tensor, Tensor)",
)
def masked_feature_loss_op(prediction, features, rows, seqlens, *options):
    """The loss, and its gradient times `_gradient_scale` in the prediction's dtype."""
    require_index("rows", rows, features.shape[0])
    _require_sequences(seqlens, len(rows))
    arguments = (prediction, features, rows, seqlens, *options)
    scale = _gradient_scale(prediction.numel())
    if use_triton("masked_feature_loss", prediction):
        return launch_loss(*arguments, scale)
    loss, gradient = masked_feature_loss_reference(*arguments)
    return loss, (gradient * scale).to(prediction.dtype).contiguous()


@masked_feature_loss_op.register_fake
def _(prediction, *_):
    loss = prediction.new_empty((), dtype=torch.float32)
    return loss, prediction.new_empty(prediction.shape)


@torch.library.custom_op("vjepa_fast::masked_feature_loss_backward", mutates_args=())
def masked_feature_loss_backward_op(scaled: Tensor, grad_loss: Tensor) -> Tensor:
    """The gradient as stored, [R, D], unscaled and times grad_loss, the gradient in the loss."""
    factor = 1.0 / _gradient_scale(scaled.numel())
    if use_triton("masked_feature_loss", scaled):
        return launch_scale(scaled, grad_loss, factor)
    return (scaled.float() * (grad_loss * factor)).to(scaled.dtype)


@masked_feature_loss_backward_op.register_fake
def _(scaled, grad_loss):
    return torch.empty_like(scaled)


def _save_gradient(ctx, inputs, output) -> None:
    ctx.set_materialize_grads(False)  # else PyTorch allocates zeros [R, D] for the second output
    ctx.save_for_backward(output[1])


def _backward(ctx, grad_loss, _):
    (scaled,) = ctx.saved_tensors
    return masked_feature_loss_backward_op(scaled, grad_loss), *[None] * 7


def _no_second_derivative(ctx, _):
    raise RuntimeError(
        "masked_feature_loss: found a request for a second derivative, expected one backward; the "
        "gradient is written in the forward, so PyTorch can't differentiate twice"
    )


masked_feature_loss_op.register_autograd(_backward, setup_context=_save_gradient)
masked_feature_loss_backward_op.register_autograd(_no_second_derivative)


def masked_feature_loss(
    prediction: Tensor,
    features: Tensor,
    rows: Tensor,
    seqlens: Tensor,
    spec_ids: Tensor,
    exponent: float = 1.0,
    normalize: bool = True,
    weights: Tensor | None = None,
) -> Tensor:
    """Distance of predicted to target features (paper, equation 1 and section 3.1).

    Args:
        prediction: [R, D]. The only argument that receives a gradient.
        features: output of the target encoder for all tokens, [rows, D].
        rows: row of `features` for each prediction, [R] int32 or int64.
        seqlens: targets of each sequence (one clip under one mask spec), [S] int, all positive.
        spec_ids: mask spec of each sequence, [S] int.
        exponent: p of |z - y|^p / p.
        normalize: layer-norm the features first (no affine, eps 1e-5, fp32).
        weights: factor of each row's part of the loss, [R], without gradient; None: all 1.

    Returns:
        fp32 scalar: mean over specs of the mean over their clips of the mean over that clip's
        targets and features, each row times its weight. A NaN in a difference gives NaN in the loss
        and in the gradient.

    Raises:
        ValueError: shapes, dtypes or devices that don't fit, an exponent below 1; on CPU, or under
            VJEPA_FAST_CHECK_INDEX=1, rows outside `features` and lengths that don't sum to R.
            Unchecked (CUDA), an invalid row makes the loss and that row's gradient NaN; invalid
            lengths make the loss and all gradients NaN.
    """
    require(
        prediction.ndim == 2 and features.ndim == 2 and prediction.shape[1] == features.shape[1],
        f"prediction, features: found shapes {tuple(prediction.shape)} and "
        f"{tuple(features.shape)}, expected [R, D] and [rows, D]",
    )
    require(
        rows.shape == prediction.shape[:1],
        f"rows: found shape {tuple(rows.shape)}, expected [{prediction.shape[0]}]",
    )
    require(
        seqlens.ndim == 1 and seqlens.shape == spec_ids.shape and len(seqlens) > 0,
        f"seqlens, spec_ids: found shapes {tuple(seqlens.shape)} and {tuple(spec_ids.shape)}, "
        "expected [S] each, S at least 1",
    )
    require_integers("rows", rows)
    require_integers("seqlens", seqlens)
    require_integers("spec_ids", spec_ids)
    if not exponent >= 1.0:  # NaN too; not `require`: a symbolic float has no text
        raise ValueError(f"exponent: found {exponent}, expected 1 or more")
    for name, tensor in {"prediction": prediction, "features": features}.items():
        require_floating(name, tensor)
    others = {"features": features, "rows": rows, "seqlens": seqlens, "spec_ids": spec_ids}
    if weights is not None:
        require(
            weights.shape == rows.shape,
            f"weights: found shape {tuple(weights.shape)}, expected [{len(rows)}]",
        )
        require_floating("weights", weights)
        others["weights"] = weights
    for name, tensor in others.items():
        require_same_device(name, tensor, "prediction", prediction)
    inputs = (prediction, features, rows, seqlens, spec_ids, exponent, normalize, weights)
    return masked_feature_loss_op(*inputs)[0]
