"""Which activations of a block wait for the backward pass, and which are computed again in it.

| mode      | kept of a block, in widths D a token (MLP ratio r) | computed again            |
|-----------|----------------------------------------------------|---------------------------|
| none      | everything: 8 + 2 r                                | nothing                   |
| selective | input, products and attention: 6 + r               | norms, GELU, additions    |
| full      | its input: 1                                       | the block                 |
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from vjepa_fast.models.attention import choose_backend
from vjepa_fast.models.sequences import SeqLayout

ActivationCheckpointing = Literal["none", "selective", "full"]
_ATTENTION = ("attention", "attn", "flash")  # in the names of torch's and xformers' operators


@lru_cache
def _kind(operator: object) -> str:
    namespace, _, name = operator._schema.name.partition("::")
    if namespace == "aten" and name in ("mm", "addmm"):
        return "product"
    return "attention" if any(word in name for word in _ATTENTION) else "cheap"


def _policy(_: object, operator: object, *arguments: object, **__: object) -> CheckpointPolicy:
    """Keep what is dear to compute, except a product that narrows: the MLP's second, which ends the
    block, so that nothing in the block's backward asks for it."""
    kind = _kind(operator)
    if kind == "product":
        inner, outer = arguments[-1].shape
        kind = "cheap" if inner > outer else kind
    return CheckpointPolicy.PREFER_RECOMPUTE if kind == "cheap" else CheckpointPolicy.MUST_SAVE


def run_blocks(
    blocks: nn.ModuleList, x: Tensor, layout: SeqLayout, mode: ActivationCheckpointing
) -> Tensor:
    """Blocks one after another, [rows, D] → [rows, D].

    Args:
        blocks: `layers.Block`s, called with x and the layout.
        mode: see the top; plays no part where no gradient is recorded. Gradients are the same.
    """
    if mode == "none" or not torch.is_grad_enabled():
        for block in blocks:
            x = block(x, layout)
        return x
    # No block draws random numbers: there is no state to bring back.
    if blocks:  # now, since its trial of a backend must not be recomputed
        choose_backend(x.dtype, x.device, x.shape[1] // blocks[0].attn.heads)
    again = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
    if mode == "selective":
        again = partial(again, context_fn=partial(create_selective_checkpoint_contexts, _policy))
    for block in blocks:
        x = again(block, x, layout)
    return x
