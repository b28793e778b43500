"""The size and the length of a clip, from a file's position table or from the user."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import torch

from vjepa_fast.errors import UserError
from vjepa_fast.models.positions import position_table
from vjepa_fast.weights.reading.read_tensors import Stored


class Clip(NamedTuple):
    """What a network was trained on.

    Attributes:
        num_frames: frames per clip, ascending; one, unless a predictor was trained on several.
        crop_size: side in pixels.
        uniform_power: see `positions.axis_widths`; true where there is no table.
    """

    num_frames: tuple[int, ...]
    crop_size: int
    uniform_power: bool = True


def clip_without_table(
    path: Path,
    num_frames: tuple[int, ...] | None,
    crop_size: int | None,
    patch_size: int,
    tubelet_size: int,
) -> Clip:
    """The clip of weights that do not show it.

    Raises:
        UserError: the user has not said it, or it is no whole number of tokens.
    """
    if num_frames is None or crop_size is None:
        missing = ["--crop-size"] * (crop_size is None) + ["--num-frames"] * (num_frames is None)
        raise UserError(
            f"{path}: found weights without a position table, which do not show the size and the "
            f"length of their clips, expected {' and '.join(missing)}; give it (the released "
            "V-JEPA 2 models have 64 frames of 256 pixels, or of 384 if their name says so)"
        )
    for flag, count, part, what in (
        ("--crop-size", crop_size, patch_size, "patches"),
        *(("--num-frames", frames, tubelet_size, "tubelets") for frames in num_frames),
    ):
        if count % part:
            raise UserError(
                f"{flag}: found {count}, expected a multiple of {part}, since the {what} of {path} "
                f"have {part}; give e.g. {max(1, round(count / part)) * part}"
            )
    return Clip(tuple(sorted(num_frames)), crop_size)


def clip_of_table(
    table: Stored,
    width: int,
    patch_size: int,
    tubelet_size: int,
    num_frames: tuple[int, ...] | None,
    crop_size: int | None,
) -> Clip:
    """The clip whose sine-cosine table a file holds.

    Args:
        table: [1, N, D] or [N, D].
        width: D.
        num_frames, crop_size: what the user says; None: nothing.

    Raises:
        UserError: it is not the fixed table of a square clip, or contradicts the user.
    """
    values = _rows(table, width)
    # Sine of time at frequency 1 comes first, and time is slowest: its first run is one frame.
    changes = (values[:, 0] != values[0, 0]).nonzero()
    run = int(changes[0]) if len(changes) else len(values)
    side, frames = math.isqrt(run), len(values) // run
    found = None
    if side * side * frames == len(values):
        powers = (True, False) if width % 8 == 0 else (True,)
        for power in powers:
            if _difference(values, table, (frames, side, side), power) == 0:
                found = Clip((frames * tubelet_size,), side * patch_size, power)
                break
    if found is None:
        raise UserError(
            f"{table.file}: found a position table {table.name} of {len(values)} tokens that is "
            "learned, interpolated or not of square clips, expected the fixed sine-cosine table of "
            "V-JEPA; give the file as its training wrote it"
        )
    for flag, said, has in (
        ("--crop-size", crop_size, found.crop_size),
        ("--num-frames", num_frames, found.num_frames),
    ):
        if said is not None and said != has:
            said, has = (",".join(map(str, x)) if isinstance(x, tuple) else x for x in (said, has))
            raise UserError(
                f"{flag}: found {said}, expected {has}, since {table.file} has the position table "
                "of such clips; leave it out (continued training may set another one)"
            )
    return found


def require_table(table: Stored, width: int, grid: tuple[int, int, int], power: bool) -> None:
    """Check that a table is the fixed one, so that it can be computed anew.

    Raises:
        UserError: it is another one.
    """
    values = _rows(table, width)
    if len(values) != math.prod(grid) or _difference(values, table, grid, power) > 0:
        raise UserError(
            f"{table.file}: found a position table {table.name} of shape {table.shape} that "
            f"differs from that of {' x '.join(map(str, grid))} tokens, expected the fixed "
            "sine-cosine table of the encoder's clips; give the file as its training wrote it"
        )


def _rows(table: Stored, width: int) -> torch.Tensor:
    """A table as fp32 [N, D]."""
    values = table.read().float()
    values = values[0] if values.ndim == 3 and len(values) == 1 else values
    if values.ndim != 2 or values.shape[1] != width or not len(values):
        raise UserError(
            f"{table.file}: found a position table {table.name} of shape {table.shape}, expected "
            f"[1, tokens, {width}]; give the file as its training wrote it"
        )
    return values


def _difference(
    values: torch.Tensor, table: Stored, grid: tuple[int, int, int], power: bool
) -> float:
    """How far values are from the table of a grid, beyond rounding."""
    # Sines and cosines are at most 1, so that their last bit is eps; two for another libm.
    assert table.dtype is not None
    allowed = 2 * max(torch.finfo(table.dtype).eps, torch.finfo(torch.float32).eps)
    own = position_table(values.shape[1], grid, power)
    return max(0.0, float((own - values).abs().max()) - allowed)
