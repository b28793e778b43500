"""The predictor's input: projected context and mask tokens, each at its position."""

from __future__ import annotations

import torch
from torch import Tensor

from vjepa_fast.kernels._checks import (
    require,
    require_floating,
    require_index,
    require_integers,
    require_same_device,
    require_tensor,
)
from vjepa_fast.kernels._dispatch import use_triton
from vjepa_fast.kernels.gather_backward import add_rows, launch_scatter
from vjepa_fast.kernels.predictor_tokens_triton import launch_predictor_tokens, launch_sum_by_spec


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
    # mask tokens collect thousands of rows each: a product with one-hot rows adds in fp32
    spec = torch.arange(context_rows, context_rows + specs, device=source.device)
    one_hot = (source == spec[:, None]).float()
    with torch.autocast(grad.device.type, enabled=False):  # it would make the product bf16
        mask_tokens = one_hot @ grad.float()
    if grad.device.type == "cpu":
        return add_rows(grad[is_context], source[is_context], context_rows), mask_tokens
    # a boolean mask would wait for the device: mask tokens go to a row that is dropped
    rows = add_rows(grad, source.clamp(max=context_rows), context_rows + 1)
    return rows[:-1].clone(), mask_tokens


@torch.library.custom_op(
    "vjepa_fast::predictor_tokens",
    mutates_args=(),
    schema="(Tensor context, Tensor pos, Tensor mask_tokens, Tensor source, Tensor position)"
    " -> Tensor",
)
def predictor_rows(
    context: Tensor, pos: Tensor, mask_tokens: Tensor, source: Tensor, position: Tensor
) -> Tensor:
    """See `predictor_tokens`."""
    require_index("source", source, context.shape[0] + mask_tokens.shape[0])
    require_index("position", position, pos.shape[0])
    if use_triton("predictor_tokens", context):
        return launch_predictor_tokens(context, pos, mask_tokens, source, position)
    return predictor_tokens_reference(context, pos, mask_tokens, source, position)


@predictor_rows.register_fake
def _(context, pos, mask_tokens, source, position):
    return context.new_empty(source.shape[0], context.shape[1])


@torch.library.custom_op(
    "vjepa_fast::predictor_tokens_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor source, SymInt context_rows, SymInt specs) -> (Tensor, Tensor)",
)
def predictor_tokens_backward(
    grad: Tensor, source: Tensor, context_rows: int, specs: int
) -> tuple[Tensor, Tensor]:
    """grad [R, P] → gradients of context [Rc, P], dtype of grad, and of mask tokens, fp32 [M, P].

    Both are added in a fixed order.
    """
    if use_triton("predictor_tokens_backward", grad):
        context = launch_scatter(grad, [source.unsqueeze(0)], 1, context_rows).squeeze(0)
        return context, launch_sum_by_spec(grad, source, context_rows, specs)
    return predictor_tokens_backward_reference(grad, source, context_rows, specs)


@predictor_tokens_backward.register_fake
def _(grad, source, context_rows, specs):
    width = grad.shape[1]
    return grad.new_empty(context_rows, width), grad.new_empty(specs, width, dtype=torch.float32)


def _setup(ctx, inputs, output) -> None:
    context, _, mask_tokens, source, _ = inputs
    ctx.save_for_backward(source)
    ctx.rows, ctx.specs, ctx.mask_dtype = len(context), len(mask_tokens), mask_tokens.dtype


def _backward(ctx, grad: Tensor):
    (source,) = ctx.saved_tensors
    context, mask_tokens = predictor_tokens_backward(grad, source, ctx.rows, ctx.specs)
    return context, None, mask_tokens.to(ctx.mask_dtype), None, None


predictor_rows.register_autograd(_backward, setup_context=_setup)


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
        [R, P], dtype of context, added in fp32. Differentiable (once) in context and mask_tokens:
        gradients of rows that stand several times add up in a fixed order (context rows on CUDA:
        that takes Triton; PyTorch adds them atomically, in any order).

    Raises:
        ValueError: what isn't a tensor; widths, lengths or devices that differ, other dtypes; on
            CPU, or under VJEPA_FAST_CHECK_INDEX=1, an index outside its range. Else on CUDA Triton
            makes such a row NaN and takes no gradient from it, and the reference
            (VJEPA_FAST_KERNELS=reference) stops with PyTorch's device-side assertion.
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
    return predictor_rows(context, pos, mask_tokens, source, position)
