"""Pictures of a run: its masks, and the target encoder's features of a few fixed clips."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vjepa_fast.masks import MaskBatch
from vjepa_fast.masks.overlay import overlay, token_kinds
from vjepa_fast.pictures import GAP, PrincipalColors

CLIPS = 3  # fixed clips
FRAMES = 4  # of each clip, at most
SPECS = 4  # at most
SIDE = 96  # pixels of a frame in a picture, at least

# By the name of a picture; `done` is the number of steps done.
TITLES = {
    "features": "Features of the {network} after {done} steps\n"
    "Below each clip, the first three principal components as red, green and blue",
    "masks": "Masks of step {done}, a row per mask spec\n"
    "Bright: context; blue: target; orange: neither",
}


def shown_frames(length: int) -> np.ndarray:
    """Up to `FRAMES` time positions of a grid with `length`, evenly spaced."""
    return np.unique(np.linspace(0, length - 1, FRAMES).round().astype(int))


def principal_colors(features: Tensor, grid: tuple[int, int, int]) -> np.ndarray:
    """The first three principal components of token features as red, green and blue.

    The components are computed over the tokens of all clips, so that a color means the same in
    each clip, see `PrincipalColors`.

    Args:
        features: [B, N, D], any float dtype.
        grid: tokens (T', H', W').

    Returns:
        float32 in 0 … 1, [B, T', H', W', 3].
    """
    return PrincipalColors.of(features)(features).reshape(len(features), *grid, 3)


def feature_picture(video: Tensor, features: Tensor, grid: tuple[int, int, int]) -> np.ndarray:
    """Draw clips and, below each, its features as colors.

    Args:
        video: uint8 [B, T, H, W, 3].
        features: features of the target encoder, [B, N, D].
        grid: tokens (T', H', W').

    Returns:
        uint8 RGBA [height, width, 4], transparent between the frames.
    """
    tubelet = video.shape[1] // grid[0]
    colors = torch.from_numpy(principal_colors(features, grid))
    rows = []
    for clip, values in zip(video.cpu(), colors, strict=True):
        times = shown_frames(grid[0])
        smooth = F.interpolate(values[times].permute(0, 3, 1, 2), clip.shape[1:3], mode="bilinear")
        pixels = (255 * smooth).round().to(torch.uint8).permute(0, 2, 3, 1)
        rows += [clip[times * tubelet].numpy(), pixels.numpy()]
    return tiles(rows)


def mask_picture(video: Tensor, masks: MaskBatch, grid: tuple[int, int, int]) -> np.ndarray:
    """The first clip under its mask of each spec, tinted as `masks.overlay` does.

    Args:
        video: uint8 [B, T, H, W, 3], on the host.
        masks: masks of at least one clip.
        grid: tokens (T', H', W').

    Returns:
        uint8 RGBA [height, width, 4], a row for each spec, transparent between the frames.
    """
    clip, times = video[0].cpu().numpy(), shown_frames(grid[0])
    tubelet, patch = len(clip) // grid[0], clip.shape[1] // grid[1]
    kinds = token_kinds(masks, grid)[:SPECS, 0]
    return tiles([[overlay(clip[t * tubelet], mask[t], patch) for t in times] for mask in kinds])


def tiles(rows: list) -> np.ndarray:
    """Arrange rows of equal pictures, uint8 [H, W, 3], with gaps; small ones are enlarged."""
    height, width = rows[0][0].shape[:2]
    scale = -(-SIDE // height)
    high, wide = height * scale + GAP, width * scale + GAP
    out = np.zeros((len(rows) * high - GAP, len(rows[0]) * wide - GAP, 4), dtype=np.uint8)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            tile = out[i * high :, j * wide :][: height * scale, : width * scale]
            tile[..., :3] = picture.repeat(scale, axis=0).repeat(scale, axis=1)
            tile[..., 3] = 255
    return out
