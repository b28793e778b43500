"""Pictures of a run: its masks, and the target encoder's features of a few fixed clips."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vjepa_fast.masks import MaskBatch
from vjepa_fast.masks.overlay import overlay, token_kinds

CLIPS = 3  # fixed clips
FRAMES = 4  # of each clip, at most
SPECS = 4  # at most
SIDE = 96  # pixels of a frame in a picture, at least
GAP = 4  # pixels
TEXT = 12  # pixels, of the title; wider pictures have larger ones

# By the name of a picture; `done` is the number of steps done.
TITLES = {
    "features": "Features of the target encoder after {done} steps\n"
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
    each clip. Each has the sign that makes its largest entry positive and is clipped to its middle
    98 %.

    Args:
        features: [B, N, D], any float dtype.
        grid: tokens (T', H', W').

    Returns:
        float32 in 0 … 1, [B, T', H', W', 3].
    """
    flat = F.layer_norm(features.float(), features.shape[-1:]).flatten(0, 1)
    flat = flat - flat.mean(0)
    _, vectors = torch.linalg.eigh(flat.T @ flat / len(flat))
    first = vectors[:, -3:].flip(1)
    largest = first.gather(0, first.abs().argmax(0, keepdim=True))
    values = flat @ (first * largest.sign())
    low, high = (torch.quantile(values[: 1 << 22], q, dim=0) for q in (0.01, 0.99))
    values = ((values - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    return values.view(len(features), *grid, -1).cpu().numpy()


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


def titled(pixels: np.ndarray, title: str) -> np.ndarray:
    """A picture below its title, black on white, in as many lines as its width needs.

    Args:
        pixels: uint8 RGBA [height, width, 4].
        title: words; a line break begins a new line.

    Returns:
        uint8 RGBA [more, width, 4].
    """
    width = pixels.shape[1]
    font = ImageFont.load_default(max(TEXT, width // 50))
    lines = []
    for paragraph in title.split("\n"):
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}".strip()
            if line and font.getlength(longer) > width - 2 * GAP:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    pitch = round(1.35 * font.size)
    band = Image.new("RGBA", (width, len(lines) * pitch + 2 * GAP), "white")
    draw = ImageDraw.Draw(band)
    for i, line in enumerate(lines):
        draw.text((GAP, GAP + i * pitch), line, "black", font)
    return np.concatenate([np.asarray(band), pixels])
