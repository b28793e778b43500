"""Which part of the picture a clip shows: random resized crops, or a centered square."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vjepa_fast.masks.philox import STREAM_CROP, STREAM_FLIP, draw, uniform

_TRIES = 10


@dataclass(frozen=True)
class Augment:
    """Random resized crop and horizontal flip.

    Attributes:
        area: range of the crop's area, as a fraction of the picture's.
        aspect_ratio: range of width / height.
        flip: mirror half of the clips.
    """

    area: tuple[float, float] = (0.3, 1.0)
    aspect_ratio: tuple[float, float] = (0.75, 1.35)
    flip: bool = True


def random_crops(
    seed: int, sample_ids: np.ndarray, heights: np.ndarray, widths: np.ndarray, augment: Augment
) -> np.ndarray:
    """Random resized crops of pictures of these sizes, in pixels (all inputs int64 [n]).

    Up to ten boxes of uniform area and log-uniform aspect ratio are drawn; the first one that fits
    is placed uniformly. If none fits: the largest centered box with an aspect ratio in the range.

    Returns:
        (top, left, height, width) in pixels, int64 [n, 4].
    """
    n = len(sample_ids)
    u = uniform(draw(seed, STREAM_CROP, sample_ids, 4 * _TRIES)).reshape(n, _TRIES, 4)
    low, high = augment.area
    area = (low + (high - low) * u[..., 0]) * (heights * widths)[:, None]
    low, high = np.log(augment.aspect_ratio)
    aspect = np.exp(low + (high - low) * u[..., 1])
    width = np.rint(np.sqrt(area * aspect)).astype(np.int64)
    height = np.rint(np.sqrt(area / aspect)).astype(np.int64)
    fits = (width >= 1) & (height >= 1) & (width <= widths[:, None]) & (height <= heights[:, None])
    chosen = np.arange(n), fits.argmax(axis=1)
    width, height = width[chosen], height[chosen]
    top = np.floor(u[..., 2][chosen] * (heights - height + 1)).astype(np.int64)
    left = np.floor(u[..., 3][chosen] * (widths - width + 1)).astype(np.int64)
    crops = np.stack([top, left, height, width], axis=1)
    return np.where(
        fits.any(axis=1)[:, None], crops, largest_centered(heights, widths, augment.aspect_ratio)
    )


def random_flips(seed: int, sample_ids: np.ndarray, augment: Augment | None) -> np.ndarray:
    """Which clips are mirrored: half of them if `augment` says so, else none; bool [n]."""
    if augment is None or not augment.flip:
        return np.zeros(len(sample_ids), dtype=bool)
    return draw(seed, STREAM_FLIP, sample_ids, 1)[:, 0] >= 2**31


def largest_centered(
    heights: np.ndarray, widths: np.ndarray, aspect_ratio: tuple[float, float] = (1.0, 1.0)
) -> np.ndarray:
    """The largest centered boxes with an aspect ratio in the range, by default squares: (top, left,
    height, width) in pixels, int64 [n, 4].
    """
    low, high = aspect_ratio
    width = np.minimum(widths, np.rint(heights * high).astype(np.int64))
    height = np.minimum(heights, np.rint(widths / low).astype(np.int64))
    width, height = np.maximum(width, 1), np.maximum(height, 1)
    return np.stack([(heights - height) // 2, (widths - width) // 2, height, width], axis=1)


def center_view(heights: np.ndarray, widths: np.ndarray, crop_size: int) -> np.ndarray:
    """The centered squares that published models are evaluated on, before they are resized.

    There the shorter side is resized to int(crop_size · 256 / 224), and a square of crop_size is
    cut from the middle. A picture of that size already is cut only.

    Args:
        heights, widths: of the pictures, in pixels, int64 [n].
        crop_size: side of the clips in pixels.

    Returns:
        (top, left, height, width) in pixels, int64 [n, 4].
    """
    short = np.minimum(heights, widths)
    side = np.maximum(np.rint(short * crop_size / int(crop_size * 256 / 224)), 1).astype(np.int64)
    top, left = (heights - side) // 2, (widths - side) // 2
    return np.stack([top, left, side, side], axis=1)
