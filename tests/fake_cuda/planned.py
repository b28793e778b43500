"""The dtypes that each operator of a step may have on the device, and the step's own kernels."""

from __future__ import annotations

import torch


def names(text: str) -> set[str]:
    return set(text.split())


# Of these every dtype is planned: they move no data, or copy it, or cast it on purpose.
VIEWS = names(
    "_unsafe_view alias as_strided detach expand record_stream select slice split "
    "split_with_sizes squeeze t transpose unbind unsqueeze view "
    "_to_copy cat clone copy_ empty empty_like fill_ new_empty new_zeros stack where zero_ zeros "
    "zeros_like _foreach_copy_ _foreach_zero_"
)
ATTENTION = names(
    "_scaled_dot_product_flash_attention _scaled_dot_product_flash_attention_backward "
    "torch_attn::_varlen_attn torch_attn::_varlen_attn_backward"
)
OURS = {
    f"vjepa_fast::{name}"
    for name in names(
        "gather_tokens scatter_tokens predictor_tokens predictor_tokens_backward patchify "
        "masked_feature_loss masked_feature_loss_backward rotate_queries_keys "
        "rotate_queries_keys_in_place ema_update"
    )
}
NORMS = {"native_layer_norm", "native_layer_norm_backward"}
COLLECTIVES = {"c10d::allreduce_", "c10d::_allgather_base_", "c10d::_reduce_scatter_base_"}
# By dtype, the operators that may have it.
PLANNED = {
    # weights, activations and their gradients; `sum`: gradients of biases
    torch.bfloat16: VIEWS
    | ATTENTION
    | COLLECTIVES
    | OURS
    | NORMS
    | {"add", "add_", "addmm", "mm", "gelu", "gelu_backward", "sum", "_foreach_add_"},
    # statistics, positions, loss, accumulated gradients, norms, masters, moments, EMA, guard
    torch.float32: VIEWS
    | ATTENTION
    | COLLECTIVES
    | OURS
    | NORMS
    | names(
        "abs add add_ amax clamp div div_ eq full_like index isfinite mean mul nan_to_num ne "
        "ones_like pow reciprocal sqrt sum _foreach_add_ _foreach_div_ _foreach_mul_ "
        "_foreach_norm _foreach_sub_ _fused_adamw_"
    ),
    # tokens and rows, and the guard's counts
    torch.int64: VIEWS | OURS | names("add arange full_like index ne repeat"),
    # offsets of sequences
    torch.int32: VIEWS | ATTENTION,
    # what is not finite
    torch.bool: VIEWS | {"eq", "isfinite", "logical_not", "mul", "ne"},
    # pixels
    torch.uint8: VIEWS | {"vjepa_fast::patchify"},
    # the state of attention's dropout, which has none
    torch.uint64: VIEWS | ATTENTION,
}
KERNELS = names(
    "patchify_kernel predictor_tokens_kernel gather_kernel weights_kernel rows_kernel sum_kernel "
    "scale_kernel inverse_kernel scatter_kernel add_chunks_kernel add_partials_kernel ema_kernel"
)


def unplanned(found: dict[str, set[torch.dtype]]) -> set[tuple[str, torch.dtype]]:
    """Operators with a dtype that `PLANNED` does not allow them."""
    pairs = {(name, dtype) for name, dtypes in found.items() for dtype in dtypes}
    return {(name, dtype) for name, dtype in pairs if name not in PLANNED.get(dtype, ())}
