"""Fixed 3-D sine-cosine positions (paper, section 3.3)."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def _axis_table(width: int, coordinates: np.ndarray) -> np.ndarray:
    """[n, width]: sines, then cosines, of the coordinates at width/2 geometric frequencies."""
    frequency = 10000.0 ** -(np.arange(width // 2) / (width / 2))
    angle = np.outer(coordinates, frequency)
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)


def axis_widths(width: int, uniform_power: bool) -> tuple[int, int, int]:
    """Channels of time, height and width.

    With uniform_power a third each, rounded up to an even number (the concatenation is truncated to
    width), else a half, a quarter and a quarter.
    """
    if uniform_power:
        third = math.ceil(width / 6) * 2
        return third, third, third
    if width % 8:
        raise ValueError(
            f"width: found {width}, expected a multiple of 8 without "
            "uniform_power; change one of them"
        )
    return width // 2, width // 4, width // 4


def position_table(width: int, grid: tuple[int, int, int], uniform_power: bool = True) -> Tensor:
    """Positions of all tokens of a grid.

    Args:
        width: channels D.
        grid: tokens (T', H', W').
        uniform_power: split the channels evenly among the three axes, see `axis_widths`.

    Returns:
        fp32 [T'H'W', D], raster order, time slowest.
    """
    coordinates = np.meshgrid(*(np.arange(n, dtype=np.float64) for n in grid), indexing="ij")
    widths = axis_widths(width, uniform_power)
    parts = [_axis_table(w, c.ravel()) for w, c in zip(widths, coordinates, strict=True)]
    return torch.from_numpy(np.concatenate(parts, axis=1)[:, :width].astype(np.float32))
