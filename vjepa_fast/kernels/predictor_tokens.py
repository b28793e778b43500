"""The predictor's input: projected context and mask tokens, each at its position."""

from __future__ import annotations

import torch
from torch import Tensor

from vjepa_fast.kernels.checks import require, require_index


def predictor_tokens_reference(
    context: Tensor, pos: Tensor, mask_tokens: Tensor, source: Tensor, position: Tensor
) -> Tensor:
    """The specification of `predictor_tokens`, in plain PyTorch."""
    pool = torch.cat([context.float(), mask_tokens.float()])
    return (pool[source.long()] + pos[position.long()]).to(context.dtype)


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
        "context, pos, mask_tokens: expected two dimensions each",
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
    return predictor_tokens_reference(context, pos, mask_tokens, source, position)
