"""The feature loss: |prediction - layer_norm(feature)|^p / p, averaged per clip, then per spec."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vjepa_fast.kernels._checks import (
    require,
    require_floating,
    require_index,
    require_integers,
    require_same_device,
)
from vjepa_fast.kernels._dispatch import look_at_indices, use_triton
from vjepa_fast.kernels.feature_loss_triton import launch_loss, launch_scale

FEATURE_NORM_EPS = 1e-5


def row_weights(seqlens: Tensor, spec_ids: Tensor, rows: int, width: int) -> Tensor:
    """Weight of each target row in the loss, fp32 [R]: 1 / (specs · clips · targets · width)."""
    # counted by comparison, not by bincount, which would wait for a CUDA device
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
) -> tuple[Tensor, Tensor]:
    """The specification: the loss (fp32 scalar) and its gradient in the prediction, in fp32."""
    target = features.index_select(0, rows).float()  # unlike [rows], refuses negative ones
    if normalize:
        target = F.layer_norm(target, target.shape[-1:], eps=FEATURE_NORM_EPS)
    difference = prediction.float() - target
    weight = row_weights(seqlens.long(), spec_ids.long(), *prediction.shape)
    size = difference.abs()
    loss = torch.dot(size.pow(exponent).sum(1) if exponent != 1.0 else size.sum(1), weight)
    slope = difference.sign() if exponent == 1.0 else difference.sign() * size.pow(exponent - 1)
    slope = torch.where(difference.isnan(), difference, slope)  # sign(NaN) would be 0
    return loss / exponent, slope * weight[:, None]


def _gradient_scale(numel: int) -> float:
    """A mean over 10⁷ values has slopes of 10⁻⁷, which are 0 in fp16: this keeps them near 1."""
    return 2.0 ** numel.bit_length()


def _require_sequences(seqlens: Tensor, rows: int) -> None:
    """Refuse lengths that don't sum to the rows, where values are looked at: `require_index`."""
    if look_at_indices(seqlens):
        expected = f"expected positive lengths that sum to {rows}"
        shortest, total = int(seqlens.min()), int(seqlens.sum())
        require(shortest > 0, f"seqlens: found a length of {shortest}, {expected}")
        require(total == rows, f"seqlens: found {total} targets in all, {expected}")


@torch.library.custom_op("vjepa_fast::masked_feature_loss", mutates_args=())
def _loss_and_gradient(
    prediction: Tensor,
    features: Tensor,
    rows: Tensor,
    seqlens: Tensor,
    spec_ids: Tensor,
    exponent: float,
    normalize: bool,
) -> tuple[Tensor, Tensor]:
    """The loss, and its gradient times `_gradient_scale` in the prediction's dtype."""
    require_index("rows", rows, features.shape[0])
    _require_sequences(seqlens, len(rows))
    arguments = (prediction, features, rows, seqlens, spec_ids, exponent, normalize)
    scale = _gradient_scale(prediction.numel())
    if use_triton("masked_feature_loss", prediction):
        return launch_loss(*arguments, FEATURE_NORM_EPS, scale)
    loss, gradient = masked_feature_loss_reference(*arguments)
    return loss, (gradient * scale).to(prediction.dtype).contiguous()


@_loss_and_gradient.register_fake
def _(prediction, features, rows, seqlens, spec_ids, exponent, normalize):
    loss = prediction.new_empty((), dtype=torch.float32)
    return loss, prediction.new_empty(prediction.shape)


@torch.library.custom_op("vjepa_fast::masked_feature_loss_backward", mutates_args=())
def _unscale(scaled: Tensor, grad_loss: Tensor) -> Tensor:
    factor = 1.0 / _gradient_scale(scaled.numel())
    if use_triton("masked_feature_loss", scaled):
        return launch_scale(scaled, grad_loss, factor)
    return (scaled.float() * (grad_loss * factor)).to(scaled.dtype)


@_unscale.register_fake
def _(scaled, grad_loss):
    return torch.empty_like(scaled)


def _keep_gradient(ctx, inputs, output) -> None:
    ctx.set_materialize_grads(False)  # the second output's would be zeros, [R, D]
    ctx.save_for_backward(output[1])


def _backward(ctx, grad_loss, _):
    (scaled,) = ctx.saved_tensors
    return _unscale(scaled, grad_loss), None, None, None, None, None, None


def _refuse_twice(ctx, _):
    raise RuntimeError(
        "masked_feature_loss: found a second derivative asked for, expected one backward; its "
        "gradient is written in the forward, so PyTorch can't differentiate twice"
    )


_loss_and_gradient.register_autograd(_backward, setup_context=_keep_gradient)
_unscale.register_autograd(_refuse_twice)


def masked_feature_loss(
    prediction: Tensor,
    features: Tensor,
    rows: Tensor,
    seqlens: Tensor,
    spec_ids: Tensor,
    exponent: float = 1.0,
    normalize: bool = True,
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

    Returns:
        fp32 scalar: mean over specs of the mean over their clips of the mean over that clip's
        targets and features. A NaN in a difference gives NaN in the loss and in the gradient.

    Raises:
        ValueError: shapes, dtypes or devices that don't fit, an exponent below 1; on CPU, or under
            VJEPA_FAST_CHECK_INDEX=1, rows outside `features` and lengths that don't sum to R.
            Unchecked, on a GPU, such a row gives NaN in the loss and in its own gradient, such
            lengths in all of them.
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
    if not exponent >= 1.0:  # NaN too; no `require`, since a symbolic one can't be written out
        raise ValueError(f"exponent: found {exponent}, expected 1 or more")
    for name, tensor in {"prediction": prediction, "features": features}.items():
        require_floating(name, tensor)
    others = {"features": features, "rows": rows, "seqlens": seqlens, "spec_ids": spec_ids}
    for name, tensor in others.items():
        require_same_device(name, tensor, "prediction", prediction)
    return _loss_and_gradient(prediction, features, rows, seqlens, spec_ids, exponent, normalize)[0]
