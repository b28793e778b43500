"""The flat token axis: where its sequences begin, and the index tensors of all masks on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import numpy as np
import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Copy a tensor from the host to a device, or keep it where it is, without a host sync.

    For a copy from pageable memory CUDA would first wait for the stream, `non_blocking` or not.
    """
    if torch.device(device).type == "cuda" and not tensor.is_cuda:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@dataclass(frozen=True)
class SeqLayout:
    """Sequences laid end to end in a tensor of [rows, …].

    The lengths stay on the host, so choosing an attention backend needs no host sync.

    Attributes:
        lengths: rows of each sequence, all positive.
        device: device of `cu_seqlens`.
    """

    lengths: tuple[int, ...]
    device: torch.device

    @staticmethod
    def of(lengths: Sequence[int], device: torch.device | str = "cpu") -> SeqLayout:
        """Layout of sequences with these lengths; ValueError unless all are positive."""
        lengths = tuple(int(n) for n in lengths)
        if not lengths or min(lengths) < 1:
            raise ValueError(
                f"lengths: found {lengths[:8]}, expected positive lengths; drop empty sequences"
            )
        return SeqLayout(lengths, torch.device(device))

    @cached_property
    def rows(self) -> int:
        """Length of the flat axis."""
        return sum(self.lengths)

    @cached_property
    def longest(self) -> int:
        """Length of the longest sequence."""
        return max(self.lengths)

    @cached_property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """(number of sequences, length) of each run of adjacent sequences of equal length."""
        return tuple((len(list(run)), length) for length, run in groupby(self.lengths))

    def per_row(self, values: Tensor) -> Tensor:
        """A value of each sequence as one of each of its rows: [..., sequences] → [..., rows]."""
        if len(self.runs) == 1:  # equal lengths
            return values.repeat_interleave(self.longest, dim=-1)
        lengths = to_device(torch.tensor(self.lengths), values.device)
        return values.repeat_interleave(lengths, dim=-1, output_size=self.rows)

    @cached_property
    def cu_seqlens(self) -> Tensor:
        """Offsets of the sequences, int32 [sequences + 1], on the layout's device."""
        lengths = torch.tensor((0, *self.lengths), dtype=torch.int32)
        return to_device(lengths.cumsum(0, dtype=torch.int32), self.device)


def drop_path_factors(uniform: Tensor, rate: float) -> Tensor:
    """What drop path multiplies the branches of each sequence by.

    The rate rises linearly over the blocks, from 0 to `rate`. A branch is dropped (0) where its
    number is below the block's rate, else it is multiplied by 1 / (1 - rate of the block).

    Args:
        uniform: numbers in [0, 1) for attention and MLP of each block, [depth, 2, sequences].
        rate: of the last block, in [0, 1).

    Returns:
        fp32, the shape of `uniform`.
    """
    rates = torch.linspace(0.0, rate, len(uniform), dtype=torch.float64)
    rates = to_device(rates, uniform.device)[:, None, None]
    return ((uniform >= rates) / (1.0 - rates)).float()


def ragged(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sequence of each row and its position in it, e.g. [2, 3] → [0 0 1 1 1], [0 1 0 1 2]."""
    sequence = np.repeat(np.arange(len(lengths)), lengths)
    start = np.cumsum(lengths) - lengths
    return sequence, np.arange(len(sequence)) - start[sequence]


@dataclass(frozen=True)
class PackedMasks:
    """Index tensors of M mask specs over B clips, so that one pass serves all specs.

    A sequence is one clip under one spec; sequences are spec-major. Rows of a video or of the
    target encoder's output are b · N + token.

    Attributes (int64, on the device of the model):
        context_tokens, context_rows: [Rc] token in its clip; row of the micro-batch.
        target_rows: [Rt] row of the target encoder's output.
        predictor_source, predictor_tokens: [Rc + Rt] see `kernels.predictor_tokens`.
        prediction_rows: [Rt] rows of the predictor's output that are predictions.
        target_seqlens, spec_ids: [M · B] number of targets and mask spec of each sequence.
        context_layout, predictor_layout: sequences of the encoder's and of the predictor's input.
        clips: B.
    """

    context_tokens: Tensor
    context_rows: Tensor
    target_rows: Tensor
    predictor_source: Tensor
    predictor_tokens: Tensor
    prediction_rows: Tensor
    target_seqlens: Tensor
    spec_ids: Tensor
    context_layout: SeqLayout
    predictor_layout: SeqLayout
    clips: int


def pack_masks(
    context_tokens: Tensor,
    context_seqlens: Tensor,
    target_tokens: Tensor,
    target_seqlens: Tensor,
    num_tokens: int,
    device: torch.device | str = "cpu",
    mask_token: int | None = None,
) -> PackedMasks:
    """Index tensors for the encoder, the predictor and the loss.

    Two clips of N = 4 tokens under one spec, with contexts [0 1] and [2], targets [3] and [0 1]:

        context_tokens     0 1 2          context_rows  0 1 6      target_rows  3 4 5
        predictor_source   0 1 3 | 2 3 3  context rows 0, 1 and 2; Rc + 0 = 3 is the mask token
        predictor_tokens   0 1 3 | 2 0 1  positions of the predictor's rows
        prediction_rows        2     4 5  its rows at targets
        target_seqlens     1 2            spec_ids      0 0

    Args:
        context_tokens, target_tokens: [Rc], [Rt] int64 on the host; spec-major, then by clip.
        context_seqlens, target_seqlens: [M, B] int64 on the host, tokens of each sequence.
        num_tokens: tokens N of a clip.
        device: device of the index tensors.
        mask_token: the mask token of all specs (V-JEPA 2: the one of the clips' length); None: spec
            m has mask token m (V-JEPA).

    Raises:
        ValueError: an empty context or target; lengths that don't sum to the tokens; tokens outside
            the clip.
    """
    if (
        context_seqlens.shape != target_seqlens.shape
        or context_seqlens.ndim != 2
        or not context_seqlens.numel()
    ):
        raise ValueError(
            f"context_seqlens, target_seqlens: found shapes {tuple(context_seqlens.shape)} and "
            f"{tuple(target_seqlens.shape)}, expected [M, B] each; give at least one spec and clip"
        )
    specs, clips = context_seqlens.shape
    context, context_lengths = context_tokens.numpy(), context_seqlens.numpy().ravel()
    target, target_lengths = target_tokens.numpy(), target_seqlens.numpy().ravel()
    _check_tokens("context", context, context_lengths, num_tokens)
    _check_tokens("target", target, target_lengths, num_tokens)

    context_sequence, context_position = ragged(context_lengths)
    target_sequence, target_position = ragged(target_lengths)
    lengths = context_lengths + target_lengths
    start = np.cumsum(lengths) - lengths
    context_at = start[context_sequence] + context_position  # rows of the predictor's input
    target_at = (start + context_lengths)[target_sequence] + target_position
    source = np.empty(len(context) + len(target), dtype=np.int64)
    source[context_at] = np.arange(len(context))
    token = target_sequence // clips if mask_token is None else mask_token
    source[target_at] = len(context) + token
    tokens = np.empty_like(source)
    tokens[context_at], tokens[target_at] = context, target

    def put(array: np.ndarray) -> Tensor:
        return to_device(torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)), device)

    return PackedMasks(
        context_tokens=put(context),
        context_rows=put(context + num_tokens * (context_sequence % clips)),
        target_rows=put(target + num_tokens * (target_sequence % clips)),
        predictor_source=put(source),
        predictor_tokens=put(tokens),
        prediction_rows=put(target_at),
        target_seqlens=put(target_lengths),
        spec_ids=put(np.arange(specs * clips) // clips),
        context_layout=SeqLayout.of(context_lengths, device),
        predictor_layout=SeqLayout.of(lengths, device),
        clips=clips,
    )


def _check_tokens(name: str, tokens: np.ndarray, lengths: np.ndarray, num_tokens: int) -> None:
    if lengths.sum() != len(tokens) or lengths.min() < 1:
        raise ValueError(
            f"{name}: found {len(tokens)} tokens and lengths {lengths.min()} to {lengths.max()}, "
            "expected positive lengths that sum to the tokens; give each sequence its own length"
        )
    if tokens.min() < 0 or tokens.max() >= num_tokens:  # would be rows of another clip
        raise ValueError(
            f"{name}: found tokens {tokens.min()} to {tokens.max()}, expected 0 to "
            f"{num_tokens - 1}; count tokens within their clip"
        )
