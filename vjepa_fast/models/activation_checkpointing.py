"""Activation checkpointing: what a block saves for the backward pass and what is recomputed.

| mode      | saved per token, in widths D (MLP ratio r) | recomputed                        |
|-----------|--------------------------------------------|-----------------------------------|
| none      | everything: 8 + 2 r                        | nothing                           |
| selective | input, GEMMs and attention: 6 + r          | norms, rotations, GELU, additions |
| full      | input: 1                                   | the block                         |
"""

from __future__ import annotations

from collections.abc import Iterator
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
from vjepa_fast.models.positions import Rotary
from vjepa_fast.models.sequences import SeqLayout

ActivationCheckpointing = Literal["none", "selective", "full"]
_ATTENTION = ("attention", "attn", "flash")  # in the names of torch's and xformers' operators


@lru_cache
def _kind(operator: object) -> str:
    namespace, _, name = operator._schema.name.partition("::")
    if namespace == "aten" and name in ("mm", "addmm"):
        return "gemm"
    return "attention" if any(word in name for word in _ATTENTION) else "cheap"


def _policy(_: object, operator: object, *arguments: object, **__: object) -> CheckpointPolicy:
    """Save expensive outputs, except those of GEMMs that narrow.

    That is the MLP's second one: it ends the block, and the block's backward does not need it.
    """
    kind = _kind(operator)
    if kind == "gemm":
        inner, outer = arguments[-1].shape
        kind = "cheap" if inner > outer else kind
    return CheckpointPolicy.PREFER_RECOMPUTE if kind == "cheap" else CheckpointPolicy.MUST_SAVE


def run_blocks(
    blocks: nn.ModuleList,
    x: Tensor,
    layout: SeqLayout,
    mode: ActivationCheckpointing,
    rotary: Rotary | None = None,
    factors: Tensor | None = None,
) -> Tensor:
    """The last of `block_outputs`, or x if there are no blocks."""
    for output in block_outputs(blocks, x, layout, mode, rotary, factors):
        x = output
    return x


def block_outputs(
    blocks: nn.ModuleList,
    x: Tensor,
    layout: SeqLayout,
    mode: ActivationCheckpointing,
    rotary: Rotary | None = None,
    factors: Tensor | None = None,
) -> Iterator[Tensor]:
    """Run the blocks one after another, and yield the output of each, [rows, D].

    Args:
        blocks: `block.Block`s, called with x, the layout, `rotary` and, if there are, their own
            `factors`.
        x: [rows, D].
        layout: the sequences along rows.
        mode: see the table at the top; without effect if no gradient is recorded. Gradients are the
            same in every mode.
        rotary: rotary positions of the rows, or None.
        factors: of each block's two branches, fp32 [blocks, 2, rows], see `Block`; or None.
    """
    own = ((),) * len(blocks) if factors is None else tuple((f,) for f in factors)
    if mode == "none" or not torch.is_grad_enabled():
        for block, more in zip(blocks, own, strict=True):
            x = block(x, layout, rotary, *more)
            yield x
        return
    if blocks:  # now, because its trial of a backend must not be recomputed
        choose_backend(x.dtype, x.device, x.shape[1] // blocks[0].attn.heads)
    # blocks draw no random numbers (drop path takes its own), so no generator state is restored
    checkpointed = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
    if mode == "selective":
        contexts = partial(create_selective_checkpoint_contexts, _policy)
        checkpointed = partial(checkpointed, context_fn=contexts)
    for block, more in zip(blocks, own, strict=True):
        x = checkpointed(block, x, layout, rotary, *more)
        yield x
