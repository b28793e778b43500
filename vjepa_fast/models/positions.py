"""Positions: a fixed 3-D sine-cosine table (V-JEPA, section 3.3), or rotary ones (V-JEPA 2)."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vjepa_fast.kernels import rotate_queries_keys, rotate_queries_keys_

Positions = Literal["sincos", "rope_tiled", "rope"]


def axis_table(width: int, coordinates: np.ndarray) -> np.ndarray:
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
    parts = [axis_table(w, c.ravel()) for w, c in zip(widths, coordinates, strict=True)]
    return torch.from_numpy(np.concatenate(parts, axis=1)[:, :width].astype(np.float32))


class Rotary(NamedTuple):
    """Rotary positions of some rows, see `kernels.rotate_queries_keys`.

    Attributes:
        tokens: position of each row in the grid's raster, [rows] int64.
        grid: (T', H', W') of the raster; T' is at least that of the clips.
        positions: "rope_tiled" or "rope".
    """

    tokens: Tensor
    grid: tuple[int, int, int]
    positions: Positions


def rotary_of(
    tokens: Tensor,
    grid: tuple[int, int, int],
    built: tuple[int, int, int],
    positions: Positions | None,
) -> Rotary | None:
    """The rotary positions of rows of clips; None where `positions` is, since there are none.

    Args:
        tokens: position of each row in the raster of `grid`, [rows] int64.
        grid: tokens (T', H', W') of the clips.
        built: the grid that the network was built for. The longer T' of the two counts, so that
            clips of several lengths compile nothing anew.
        positions: "rope_tiled" or "rope".
    """
    if positions is None:
        return None
    return Rotary(tokens, (max(grid[0], built[0]), *grid[1:]), positions)


def rotate(qkv: Tensor, rotary: Rotary) -> Tensor:
    """Rotate the queries and keys of packed [rows, 3, heads, head_dim]; values stay.

    Under `torch.no_grad()` (target encoder, features) in place, so qkv must be the caller's own.
    """
    form = "tiled" if rotary.positions == "rope_tiled" else "rotation"
    turn = rotate_queries_keys if torch.is_grad_enabled() else rotate_queries_keys_
    return turn(qkv, rotary.tokens, rotary.grid, form)
