"""The masks of one batch of clips."""

from __future__ import annotations

from typing import NamedTuple

import torch

from vjepa_fast.masks._checks import require_int


class MaskBatch(NamedTuple):
    """Context and target tokens of B clips under M mask specs, on one flat axis each.

    The flat order is spec-major, then clip, then token ascending. A token is its position
    0 … N - 1 in its clip's raster, time slowest. All tensors are on the CPU.

    Attributes:
        context_tokens: int64 [Rc].
        context_seqlens: int64 [M, B], context tokens of each clip; the sum is Rc.
        context_cu_seqlens: int32 [M * B + 1], offsets of the clips in context_tokens, then Rc.
        target_tokens: int64 [Rt].
        target_seqlens: int64 [M, B].
        target_cu_seqlens: int32 [M * B + 1].
        num_tokens: N, the tokens of a whole clip.
        block_sizes: int64 [V, 3], (t, h, w) of this step's blocks for each variant: the specs in
            order, a mixture's specs in its place; zeros for variants without blocks.
    """

    context_tokens: torch.Tensor
    context_seqlens: torch.Tensor
    context_cu_seqlens: torch.Tensor
    target_tokens: torch.Tensor
    target_seqlens: torch.Tensor
    target_cu_seqlens: torch.Tensor
    num_tokens: int
    block_sizes: torch.Tensor

    def context(self, spec: int) -> torch.Tensor:
        """Context tokens of one spec as a view [B, K].

        Raises:
            ValueError: there is no such spec, or its clips have different numbers of tokens.
        """
        return _rows(
            self.context_tokens, self.context_seqlens, self.context_cu_seqlens, spec, "context"
        )

    def target(self, spec: int) -> torch.Tensor:
        """Target tokens of one spec as a view [B, K]; raises as `context`."""
        return _rows(
            self.target_tokens, self.target_seqlens, self.target_cu_seqlens, spec, "target"
        )


def _rows(
    tokens: torch.Tensor, seqlens: torch.Tensor, cu_seqlens: torch.Tensor, spec: int, name: str
) -> torch.Tensor:
    lengths = seqlens[require_int("spec", spec, 0, len(seqlens))].tolist()
    clips, length = len(lengths), lengths[0]
    if lengths.count(length) < clips:
        raise ValueError(
            f"{name} tokens of spec {spec}: found lengths from {min(lengths)} to {max(lengths)}, "
            f"expected equal ones; read {name}_tokens with {name}_seqlens or use truncate='batch' "
            "within one truncation group"
        )
    start = int(cu_seqlens[spec * clips])
    return tokens[start : start + clips * length].view(clips, length)
