"""Which token a mask makes context, target or neither, and a picture tinted accordingly."""

from __future__ import annotations

import numpy as np

from vjepa_fast.masks.batch import MaskBatch

TRUNCATED, CONTEXT, TARGET = 0, 1, 2
_TINTS = ((TARGET, (16, 32, 110)), (TRUNCATED, (235, 120, 20)))  # RGB


def token_kinds(masks: MaskBatch, grid: tuple[int, int, int]) -> np.ndarray:
    """The kind of every token.

    Args:
        masks: M specs of B clips.
        grid: tokens (T', H', W') of a clip.

    Returns:
        int64 [M, B, T', H', W'] of `TRUNCATED`, `CONTEXT` and `TARGET`.
    """
    num_specs, clips = masks.context_seqlens.shape
    kinds = np.full((num_specs * clips, masks.num_tokens), TRUNCATED)
    for kind, tokens, seqlens in (
        (CONTEXT, masks.context_tokens, masks.context_seqlens),
        (TARGET, masks.target_tokens, masks.target_seqlens),
    ):
        for row, part in zip(kinds, tokens.split(seqlens.flatten().tolist()), strict=True):
            row[part.numpy()] = kind
    return kinds.reshape(num_specs, clips, *grid)


def overlay(picture: np.ndarray, kinds: np.ndarray, patch_size: int) -> np.ndarray:
    """A frame with its target tokens tinted blue and its truncated tokens orange.

    Args:
        picture: uint8 [H, W, 3].
        kinds: [H', W'], see `token_kinds`.
        patch_size: pixels.

    Returns:
        uint8 [H, W, 3].
    """
    pixels = kinds.repeat(patch_size, axis=0).repeat(patch_size, axis=1)[..., None]
    tinted = picture.astype(np.float64)
    for kind, color in _TINTS:
        tinted = np.where(pixels == kind, 0.35 * tinted + 0.65 * np.array(color), tinted)
    return tinted.round().astype(np.uint8)
