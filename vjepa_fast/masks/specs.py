"""The multi-block mask spec: how large its blocks are, and whether they can do their work."""

import math
import sys
from dataclasses import dataclass
from numbers import Integral, Real

Size = tuple[int, int, int]
"""(time, height, width) in tokens: a grid or the size of a block."""

_LAST_WORD = 2**32 - 1
_LAST_DRAW = _LAST_WORD * 2.0**-32


@dataclass(frozen=True)
class MultiBlock:
    """The context is what no block covers; a step's blocks share one size (arXiv 2404.08471, 3.2).

    num_blocks: blocks per clip, which may overlap.
    spatial_scale: share of the frame that a block covers, drawn from [low, high).
    temporal_scale: share of the clip's length that a block covers, drawn from [low, high).
    aspect_ratio: height / width of a block, drawn uniformly from [low, high).
    max_temporal_keep: only this first share of the frames, at least one, can be context.
    max_keep: at most so many context tokens per clip: the first ones, but a random subset where the
        sampler's truncate is "batch-random"; None sets no limit.

    Raises ValueError for a value out of range.
    """

    num_blocks: int
    spatial_scale: tuple[float, float]
    temporal_scale: tuple[float, float] = (1.0, 1.0)
    aspect_ratio: tuple[float, float] = (0.75, 1.5)
    max_temporal_keep: float = 1.0
    max_keep: int | None = None

    def __post_init__(self) -> None:
        _check_count("num_blocks", self.num_blocks)
        for name in ("spatial_scale", "temporal_scale", "aspect_ratio"):
            least, most = (2.0**-31, 2.0**31) if name == "aspect_ratio" else (0.0, 1.0)
            object.__setattr__(self, name, _check_range(name, getattr(self, name), least, most))
        keep = self.max_temporal_keep
        if not is_real(keep) or not 0 < keep <= 1:
            raise ValueError(
                f"found max_temporal_keep {keep!r}, expected a number above 0 and up to 1, "
                "give the share of frames that may be context"
            )
        if self.max_keep is not None:
            _check_count("max_keep", self.max_keep)

    def block_size(self, grid: Size, temporal: float, spatial: float, aspect: float) -> Size:
        """The block's (t, h, w) in tokens for three draws in [0, 1)."""
        time, height, width = grid
        area = self._area(grid, spatial)
        return (self._length(time, temporal), *self._sides(area, height, width, aspect))

    def check(self, grid: Size) -> None:
        """Raise ValueError if some drawable size leaves no context or no target wherever it falls.

        Blocks may coincide, so a single block decides: it leaves context somewhere unless it fills
        the whole grid (a shorter one can start after frame 0, which may always be context). There
        are targets if a block has tokens or if frames are barred from the context. Exact for the
        2**32 values of a draw, since each step from a draw to a size is monotonic.
        """
        grid = check_grid(grid)
        if self._length(grid[0], _LAST_DRAW) == grid[0] and self._fills_frame(grid):
            raise ValueError(
                f"found that a block can fill the whole grid {_text(grid)} and leave no context, "
                "expected free tokens for some place of its blocks, lower spatial_scale's or "
                "temporal_scale's upper end"
            )
        # The smallest area is flattest at one end of the aspect ratios and narrowest at the other.
        ends = [self.block_size(grid, 0.0, 0.0, draw) for draw in (0.0, _LAST_DRAW)]
        empty = next((size for size in ends if 0 in size), None)
        if empty and self.context_frames(grid) == grid[0]:
            raise ValueError(
                f"found that a block can have the size {_text(empty)} and give no target, "
                "expected at least one token, raise spatial_scale's lower end or narrow "
                "aspect_ratio"
            )

    def context_frames(self, grid: Size) -> int:
        """How many frames (of tokens), from the first on, can be context."""
        return max(1, int(grid[0] * self.max_temporal_keep))

    def _fills_frame(self, grid: Size) -> bool:
        """Whether a block can be as high and as wide as the frame: the largest area decides, at the
        lowest aspect ratio that makes it high enough, since a higher one only makes it narrower."""
        _, height, width = grid
        area = self._area(grid, _LAST_DRAW)
        low, high = 0, _LAST_WORD
        while low < high:
            middle = (low + high) // 2
            if self._sides(area, height, width, middle * 2.0**-32)[0] == height:
                high = middle
            else:
                low = middle + 1
        return self._sides(area, height, width, low * 2.0**-32) == (height, width)

    def _length(self, time: int, draw: float) -> int:
        return max(1, int(time * _between(self.temporal_scale, draw)))

    def _area(self, grid: Size, draw: float) -> int:
        return int(grid[1] * grid[2] * _between(self.spatial_scale, draw))

    def _sides(self, area: int, height: int, width: int, draw: float) -> tuple[int, int]:
        aspect = _between(self.aspect_ratio, draw)
        tall, wide = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        return min(tall, height), min(wide, width)


def check_grid(grid: Size) -> Size:
    """The grid (T', H', W') as a tuple of ints; ValueError unless it is three positive integers."""
    sides = tuple(grid) if isinstance(grid, tuple | list) else ()
    if len(sides) != 3 or not all(is_int(side) and side >= 1 for side in sides):
        raise ValueError(
            f"found grid {grid!r}, expected three positive integers (time, height, width), "
            "give the clip's size in tokens"
        )
    if math.prod(sides) >= 2**31:
        raise ValueError(f"found grid {grid!r}, expected under 2**31 tokens, give a smaller grid")
    return tuple(int(side) for side in sides)


def _between(ends: tuple[float, float], draw: float) -> float:
    return ends[0] + draw * (ends[1] - ends[0])


def _text(size: Size) -> str:
    return "x".join(map(str, size))


def is_int(value: object) -> bool:
    """Whether it is an integer, numpy's too; bools are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_real(value: object) -> bool:
    """Whether it is a number that a float can hold."""
    return (
        isinstance(value, Real) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    )


def _check_count(name: str, value: object) -> None:
    if not is_int(value) or not 1 <= value < 2**31:
        raise ValueError(
            f"found {name} {value!r}, expected an integer of at least 1, give a positive {name}"
        )


def _check_range(name: str, value: object, least: float, most: float) -> tuple[float, float]:
    pair = tuple(value) if isinstance(value, tuple | list) else ()
    if len(pair) == 2 and all(map(is_real, pair)):
        low, high = map(float, pair)
        if low > 0 and least <= low <= high <= most:
            return low, high
    limits = "0 < low <= high <= 1" if not least else "2**-31 <= low <= high <= 2**31"
    raise ValueError(
        f"found {name} {value!r}, expected [low, high] with {limits}, give an ascending pair"
    )
