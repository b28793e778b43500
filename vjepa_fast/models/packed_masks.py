"""All masks of a micro-batch as index tensors, so that one pass serves every mask spec."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vjepa_fast.models.sequences import SeqLayout


@dataclass(frozen=True)
class PackedMasks:
    """Index tensors of M mask specs over B clips. A sequence is one clip under one spec; sequences
    are spec-major. Rows of a video or of the target encoder's output are b · N + token.

    Attributes (int64, on the device of the model):
        context_tokens, context_rows: [Rc] token in its clip, row in the micro-batch.
        target_rows: [Rt] row in the target encoder's output.
        predictor_source, predictor_tokens: [Rc + Rt] see `kernels.predictor_tokens`.
        prediction_rows: [Rt] the predictor's rows that stand at targets.
        target_seqlens, spec_ids: [M · B] targets and mask spec of each sequence.
        context_layout, predictor_layout: sequences of the two passes.
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
) -> PackedMasks:
    """Lay out masks for the encoder, the predictor and the loss.

    Args:
        context_tokens, target_tokens: [Rc], [Rt] int64 on the host; spec-major, then by clip.
        context_seqlens, target_seqlens: tokens of each sequence, [M, B].
        num_tokens: tokens N of a clip.
        device: where the index tensors go.

    Raises:
        ValueError: an empty context or target; lengths that don't add up; tokens outside the clip.
    """
    if (
        context_seqlens.shape != target_seqlens.shape
        or context_seqlens.ndim != 2
        or not context_seqlens.numel()
    ):
        raise ValueError(
            f"context_seqlens, target_seqlens: found shapes {tuple(context_seqlens.shape)} and "
            f"{tuple(target_seqlens.shape)}, expected [M, B] each, with a spec and a clip at least"
        )
    specs, clips = context_seqlens.shape
    context_len, target_len = context_seqlens.numpy().ravel(), target_seqlens.numpy().ravel()
    context, target = context_tokens.numpy(), target_tokens.numpy()
    for name, tokens, lengths in (
        ("context", context, context_len),
        ("target", target, target_len),
    ):
        if lengths.sum() != len(tokens) or lengths.min() < 1:
            raise ValueError(
                f"{name}: found {len(tokens)} tokens and lengths {lengths.min()} to "
                f"{lengths.max()}, expected positive lengths that sum to the tokens"
            )
        if tokens.min() < 0 or tokens.max() >= num_tokens:  # would point into another clip
            raise ValueError(
                f"{name}: found tokens {tokens.min()} to {tokens.max()}, expected 0 to "
                f"{num_tokens - 1}"
            )
    sequence = np.arange(specs * clips)
    length = context_len + target_len
    start = np.cumsum(length) - length
    context_of = np.repeat(sequence, context_len)  # sequence of each context row
    target_of = np.repeat(sequence, target_len)
    within_context = np.arange(len(context)) - (np.cumsum(context_len) - context_len)[context_of]
    within_target = np.arange(len(target)) - (np.cumsum(target_len) - target_len)[target_of]
    context_at = start[context_of] + within_context  # row of the predictor's input
    target_at = start[target_of] + context_len[target_of] + within_target
    source = np.empty(len(context) + len(target), dtype=np.int64)
    place = np.empty_like(source)
    source[context_at], place[context_at] = np.arange(len(context)), context
    source[target_at], place[target_at] = len(context) + target_of // clips, target

    def put(array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64))
        if torch.device(device).type == "cuda":
            tensor = tensor.pin_memory()  # from pageable memory the copy would wait for the device
        return tensor.to(device, non_blocking=True)

    return PackedMasks(
        context_tokens=put(context),
        context_rows=put(context + num_tokens * (context_of % clips)),
        target_rows=put(target + num_tokens * (target_of % clips)),
        predictor_source=put(source),
        predictor_tokens=put(place),
        prediction_rows=put(target_at),
        target_seqlens=put(target_len),
        spec_ids=put(sequence // clips),
        context_layout=SeqLayout.of(context_len, device),
        predictor_layout=SeqLayout.of(length, device),
        clips=clips,
    )
