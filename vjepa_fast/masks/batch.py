"""The masks of one batch of clips, and memory to draw them into."""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from vjepa_fast.masks.specs import is_int


class MaskBatch(NamedTuple):
    """Context and target tokens of B clips under M mask specs, on one flat axis each.

    The flat order is spec, then clip, then token ascending; a token is its position 0 .. N-1 in its
    clip's raster, time slowest. All tensors are on the CPU; tokens are int64, or of the type of the
    buffers that they were drawn into.

    context_tokens: [Rc];  context_seqlens: int64 [M, B], whose sum is Rc;  context_cu_seqlens:
        int32 [M * B + 1], where each clip's tokens begin, and Rc.
    target_tokens: [Rt], target_seqlens, target_cu_seqlens: likewise.
    num_tokens: N, the tokens of a whole clip.
    block_sizes: int64 [S, 3], the (t, h, w) of this step's blocks, a row for each strategy: the
        specs in order, a mixture's specs in its place; zeros where a strategy has no blocks.
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
        """The context tokens of one spec as [B, K], a view; ValueError if lengths differ or there
        is no such spec."""
        return _rows(self.context_tokens, self.context_seqlens, spec, "context")

    def target(self, spec: int) -> torch.Tensor:
        """The target tokens of one spec as [B, K], a view; ValueError as for `context`."""
        return _rows(self.target_tokens, self.target_seqlens, spec, "target")


@dataclass(frozen=True)
class MaskBuffers:
    """Memory for the tokens of a batch, filled again by every call that is given it.

    context_tokens, target_tokens: [rows] each, both int32 or both int64, contiguous, on the CPU
        (pinned or not), no byte in common.

    Raises ValueError for tensors of another kind.
    """

    context_tokens: torch.Tensor
    target_tokens: torch.Tensor

    def __post_init__(self) -> None:
        for tensor in (self.context_tokens, self.target_tokens):
            if (
                not isinstance(tensor, torch.Tensor)
                or tensor.dtype not in (torch.int32, torch.int64)
                or tensor.dtype != self.context_tokens.dtype
                or tensor.dim() != 1
                or not tensor.is_contiguous()
                or tensor.device.type != "cpu"
            ):
                kind = (
                    f"a {tensor.dtype} tensor of shape {list(tensor.shape)} on {tensor.device}"
                    if isinstance(tensor, torch.Tensor)
                    else repr(tensor)
                )
                raise ValueError(
                    f"found mask buffers with {kind}, expected two contiguous [rows] tensors on "
                    "the CPU, both int32 or both int64, give what MaskSampler.buffers returns"
                )
        first, second = sorted(
            (self.context_tokens, self.target_tokens), key=lambda tensor: tensor.data_ptr()
        )
        if first.data_ptr() + first.nbytes > second.data_ptr():
            raise ValueError(
                "found mask buffers that share memory, expected one for context and another for "
                "target tokens, give what MaskSampler.buffers returns"
            )

    @staticmethod
    def allocate(rows: int, dtype: torch.dtype, pin_memory: bool) -> "MaskBuffers":
        """Room for `rows` context and as many target tokens."""
        if dtype not in (torch.int32, torch.int64):
            raise ValueError(
                f"found dtype {dtype}, expected torch.int32 or torch.int64, give one of them"
            )
        if not isinstance(pin_memory, bool):
            raise ValueError(
                f"found pin_memory {pin_memory!r}, expected True or False, give one of them"
            )
        try:
            tensors = [torch.empty(rows, dtype=dtype, pin_memory=pin_memory) for _ in range(2)]
        except RuntimeError as error:
            raise ValueError(
                f"found no memory for two buffers of {rows} tokens (pin_memory={pin_memory}: "
                f"{str(error).splitlines()[0]}), expected as much, give fewer clips, or "
                "pin_memory=False where there is no GPU"
            ) from error
        return MaskBuffers(*tensors)


def _rows(tokens: torch.Tensor, seqlens: torch.Tensor, spec: int, name: str) -> torch.Tensor:
    if not is_int(spec) or not 0 <= spec < len(seqlens):
        raise ValueError(
            f"found mask spec {spec!r}, expected an integer in 0 .. {len(seqlens) - 1}, "
            "give the number of one"
        )
    lengths = seqlens[spec]
    if lengths.numel() and not bool((lengths == lengths[0]).all()):
        raise ValueError(
            f"found {name} lengths from {lengths.min()} to {lengths.max()} in mask spec {spec}, "
            f"expected equal ones, read {name}_tokens with {name}_seqlens or use truncate='batch' "
            "within one truncation group"
        )
    start = int(seqlens[:spec].sum())
    return tokens[start : start + int(lengths.sum())].view(len(lengths), -1)
