"""The masks of one batch of clips."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class MaskBatch:
    """Context and target tokens of B clips under M mask specs, on one flat axis each.

    The flat order is spec, then clip, then token ascending; a token is its position 0 .. N-1 in its
    clip's raster, time slowest. All tensors are int64 on the CPU.

    context_tokens: [Rc];  context_seqlens: [M, B], whose sum is Rc.
    target_tokens: [Rt];  target_seqlens: [M, B], whose sum is Rt.
    num_tokens: N, the tokens of a whole clip.
    block_sizes: [M, 3], the (t, h, w) of this step's blocks.
    """

    context_tokens: torch.Tensor
    context_seqlens: torch.Tensor
    target_tokens: torch.Tensor
    target_seqlens: torch.Tensor
    num_tokens: int
    block_sizes: torch.Tensor

    def context(self, spec: int) -> torch.Tensor:
        """The context tokens of one spec as [B, K]; ValueError if the clips' lengths differ."""
        return _rows(self.context_tokens, self.context_seqlens, spec, "context")

    def target(self, spec: int) -> torch.Tensor:
        """The target tokens of one spec as [B, K]; ValueError if the clips' lengths differ."""
        return _rows(self.target_tokens, self.target_seqlens, spec, "target")


def _rows(tokens: torch.Tensor, seqlens: torch.Tensor, spec: int, name: str) -> torch.Tensor:
    lengths = seqlens[spec]
    if lengths.numel() and not bool((lengths == lengths[0]).all()):
        raise ValueError(
            f"found {name} lengths from {lengths.min()} to {lengths.max()} in mask spec {spec}, "
            f"expected equal ones, read {name}_tokens with {name}_seqlens or use truncate='batch' "
            "within one truncation group"
        )
    start = int(seqlens[:spec].sum())
    return tokens[start : start + int(lengths.sum())].view(len(lengths), -1)
