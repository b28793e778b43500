"""The size and the length of a clip, from a file's position table."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from vjepa_fast.errors import UserError
from vjepa_fast.models.positions import position_table
from vjepa_fast.weights.reading.read_tensors import Stored


class Clip(NamedTuple):
    """What a position table was made for.

    Attributes:
        num_frames: frames per clip; one length.
        crop_size: side in pixels.
        uniform_power: see `positions.axis_widths`.
    """

    num_frames: tuple[int, ...]
    crop_size: int
    uniform_power: bool


def clip_of_table(table: Stored, width: int, patch_size: int, tubelet_size: int) -> Clip | None:
    """The clip whose sine-cosine table a tensor [1, N, D] is, or None if it is no such table.

    Raises:
        UserError: it has another shape, or cannot be read.
    """
    values = _rows(table, width)
    # The sine of time at frequency 1 comes first, and time is slowest: its first run is one frame.
    changes = (values[:, 0] != values[0, 0]).nonzero()
    run = int(changes[0]) if len(changes) else len(values)
    side, frames = math.isqrt(run), len(values) // run
    if side * side * frames != len(values):
        return None
    for power in (True, False) if width % 8 == 0 else (True,):
        if _is_table(values, table, (frames, side, side), power):
            return Clip((frames * tubelet_size,), side * patch_size, power)
    return None


def require_table(table: Stored, width: int, grid: tuple[int, int, int], power: bool) -> None:
    """Check that a table is the fixed one of a grid, so that it can be computed anew.

    Raises:
        UserError: it is another one.
    """
    values = _rows(table, width)
    if len(values) != math.prod(grid) or not _is_table(values, table, grid, power):
        raise UserError(
            f"{table.file}: found a position table {table.name} of shape {table.shape} that "
            f"differs from that of {' x '.join(map(str, grid))} tokens, expected the fixed "
            "sine-cosine table of the encoder's clips; give the file as its training wrote it"
        )


def require_tokens(
    path: Path, crop_size: int, num_frames: tuple[int, ...], patch_size: int, tubelet_size: int
) -> None:
    """Check that clips are a whole number of tokens.

    Raises:
        UserError: they are not.
    """
    for flag, count, part, what in (
        ("--crop-size", crop_size, patch_size, "patches"),
        *(("--num-frames", frames, tubelet_size, "tubelets") for frames in num_frames),
    ):
        if count % part:
            raise UserError(
                f"{flag}: found {count}, expected a multiple of {part}, since the {what} of {path} "
                f"have {part}; give e.g. {max(1, round(count / part)) * part}"
            )


def _rows(table: Stored, width: int) -> Tensor:
    """A table as fp32 [N, D]."""
    values = table.read().float()
    values = values[0] if values.ndim == 3 and len(values) == 1 else values
    if values.ndim != 2 or values.shape[1] != width or not len(values):
        raise UserError(
            f"{table.file}: found a position table {table.name} of shape {table.shape}, expected "
            f"[1, tokens, {width}]; give the file as its training wrote it"
        )
    return values


def _is_table(values: Tensor, table: Stored, grid: tuple[int, int, int], power: bool) -> bool:
    # Sines and cosines are at most 1, so eps is more than their rounding. Tables are computed in
    # fp64 here and there, which may differ in a last bit.
    eps = max(torch.finfo(table.dtype or torch.float32).eps, torch.finfo(torch.float32).eps)
    own = position_table(values.shape[1], grid, power)
    return bool((own - values).abs().max() <= eps)
