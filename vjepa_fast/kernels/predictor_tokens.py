"""The predictor's input: projected context and mask tokens, each at its position."""

from __future__ import annotations

import torch
from torch import Tensor

from vjepa_fast.kernels.checks import require, require_index
from vjepa_fast.kernels.scatter import add_rows


def predictor_tokens_reference(
    context: Tensor, pos: Tensor, mask_tokens: Tensor, source: Tensor, position: Tensor
) -> Tensor:
    """The specification of `predictor_tokens`, in plain PyTorch."""
    pool = torch.cat([context.float(), mask_tokens.float()])
    return (pool[source.long()] + pos[position.long()]).to(context.dtype)


class _PredictorTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx, context, pos, mask_tokens, source, position):
        ctx.save_for_backward(source)
        ctx.rows, ctx.specs, ctx.mask_dtype = len(context), len(mask_tokens), mask_tokens.dtype
        return predictor_tokens_reference(context, pos, mask_tokens, source, position)

    @staticmethod
    def backward(ctx, grad):
        (source,) = ctx.saved_tensors
        is_context = source < ctx.rows
        # mask tokens collect thousands of rows each: a product with one-hot rows adds in fp32
        spec = torch.arange(ctx.rows, ctx.rows + ctx.specs, device=source.device)
        one_hot = (source == spec[:, None]).float()
        mask_tokens = (one_hot @ grad.float()).to(ctx.mask_dtype)
        if grad.device.type == "cpu":
            context = add_rows(grad[is_context], source[is_context], ctx.rows)
        else:  # a boolean mask would wait for the device: mask tokens go to a row that is dropped
            context = add_rows(grad, source.clamp(max=ctx.rows), ctx.rows + 1)[:-1]
        return context, None, mask_tokens, None, None


def predictor_tokens(
    context: Tensor, pos: Tensor, mask_tokens: Tensor, source: Tensor, position: Tensor
) -> Tensor:
    """Lay out context ‖ targets of every sequence and add positions (paper, section 3.1).

    Args:
        context: encoder output projected to the predictor's width, [Rc, P].
        pos: position table, fp32 [N, P].
        mask_tokens: one learned token per mask spec, [M, P].
        source: what each output row holds, [R] int32 or int64: i < Rc is context row i, Rc + m the
            mask token of spec m.
        position: token each output row stands at, [R], in 0 … N - 1.

    Returns:
        [R, P], dtype of context, added in fp32. Differentiable in context and mask_tokens.

    Raises:
        ValueError: widths that differ, lengths that differ, an index outside its range (on CPU).
    """
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
    require_index("source", source, context.shape[0] + mask_tokens.shape[0])
    require_index("position", position, pos.shape[0])
    return _PredictorTokens.apply(context, pos, mask_tokens, source, position)
