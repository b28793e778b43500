"""Mask specs: multi-block, random tube, random tokens, and mixtures of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from vjepa_fast.masks._checks import is_int, is_real, require_int

Size = tuple[int, int, int]
"""(time, height, width) in tokens: a grid or the size of a block."""

_LAST_WORD = 2**32 - 1
_LAST_DRAW = _LAST_WORD * 2.0**-32


@dataclass(frozen=True)
class MultiBlock:
    """The union of blocks is target, the rest is context (arXiv 2404.08471, section 3.2).

    All clips of a step have blocks of one size.

    Attributes:
        num_blocks: blocks per clip; they may overlap.
        spatial_scale: area of a block as a fraction of the frame, drawn from [low, high).
        temporal_scale: length of a block as a fraction of the clip, drawn from [low, high).
        aspect_ratio: height / width of a block, drawn uniformly from [low, high).
        max_temporal_keep: fraction of the frames, from the first on, that can be context; at least
            one frame.
        max_keep: limit of context tokens per clip: the first ones, or a random subset if the
            sampler's truncate is "batch-random"; None is no limit.

    Raises:
        ValueError: a value out of range.
    """

    num_blocks: int
    spatial_scale: tuple[float, float]
    temporal_scale: tuple[float, float] = (1.0, 1.0)
    aspect_ratio: tuple[float, float] = (0.75, 1.5)
    max_temporal_keep: float = 1.0
    max_keep: int | None = None

    def __post_init__(self) -> None:
        require_int("num_blocks", self.num_blocks, 1, 2**31)
        for name in ("spatial_scale", "temporal_scale", "aspect_ratio"):
            least, most = (2.0**-31, 2.0**31) if name == "aspect_ratio" else (0.0, 1.0)
            object.__setattr__(self, name, _check_range(name, getattr(self, name), least, most))
        keep = self.max_temporal_keep
        if not is_real(keep) or not 0 < keep <= 1:
            raise ValueError(
                f"max_temporal_keep: found {keep!r}, expected a number above 0 and up to 1; "
                "give the fraction of frames that may be context"
            )
        if self.max_keep is not None:
            require_int("max_keep", self.max_keep, 1, 2**31)

    def block_size(self, grid: Size, temporal: float, spatial: float, aspect: float) -> Size:
        """Size (t, h, w) of a block in tokens, for three draws in [0, 1)."""
        time, height, width = grid
        area = self._area(grid, spatial)
        return (self._length(time, temporal), *self._sides(area, height, width, aspect))

    def check(self, grid: Size) -> None:
        """Reject the spec if a drawable block size leaves no context or no target on this grid.

        Blocks may coincide, so one block decides. It leaves context in some positions unless it
        fills the whole grid: a shorter block can start after frame 0, which may always be context.
        There are targets if a block has tokens or if frames are barred from the context.

        Raises:
            ValueError: such a size can be drawn.
        """
        grid = check_grid(grid)
        if self._length(grid[0], _LAST_DRAW) == grid[0] and self._fills_frame(grid):
            raise ValueError(
                f"found that a block can fill the whole grid {_text(grid)} and leave no context, "
                "expected free tokens in some positions of the blocks; lower the upper end of "
                "spatial_scale or temporal_scale"
            )
        # The smallest area is lowest at one end of the aspect ratios, narrowest at the other.
        ends = [self.block_size(grid, 0.0, 0.0, draw) for draw in (0.0, _LAST_DRAW)]
        empty = next((size for size in ends if 0 in size), None)
        if empty and self.context_frames(grid) == grid[0]:
            raise ValueError(
                f"found that a block can have the size {_text(empty)} and give no target, "
                "expected at least one token; raise the lower end of spatial_scale or narrow "
                "aspect_ratio"
            )

    def context_frames(self, grid: Size) -> int:
        """Number of frames (of tokens), from the first on, that can be context."""
        return max(1, int(grid[0] * self.max_temporal_keep))

    def _fills_frame(self, grid: Size) -> bool:
        """Whether a block of the largest area can be as high and as wide as the frame.

        Sides are rounded to the nearest token, so an aspect ratio a fills the frame if
        (H - ½)² / area <= a <= area / (W - ½)². The middle of that interval is (H - ½) / (W - ½)
        whatever the area, so the draw nearest to it decides.
        """
        _, height, width = grid
        low, high = self.aspect_ratio
        draw = ((height - 0.5) / (width - 0.5) - low) / (high - low) if high > low else 0.0
        word = min(max(round(draw * 2.0**32), 0), _LAST_WORD)
        area = self._area(grid, _LAST_DRAW)
        return self._sides(area, height, width, word * 2.0**-32) == (height, width)

    def _length(self, time: int, draw: float) -> int:
        return max(1, int(time * _between(self.temporal_scale, draw)))

    def _area(self, grid: Size, draw: float) -> int:
        return int(grid[1] * grid[2] * _between(self.spatial_scale, draw))

    def _sides(self, area: int, height: int, width: int, draw: float) -> tuple[int, int]:
        aspect = _between(self.aspect_ratio, draw)
        tall, wide = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        return min(tall, height), min(wide, width)


@dataclass(frozen=True)
class RandomTube:
    """The same random positions are targets in every frame (arXiv 2404.08471, ablations; VideoMAE).

    Attributes:
        ratio: fraction of a frame's tokens that are targets. floor((1 - ratio) * tokens) stay
            context, where ratio counts as the decimal number that it prints as: 0.9 of 100 tokens
            leaves 10.

    Raises:
        ValueError: a ratio outside (0, 1).
    """

    ratio: float

    def __post_init__(self) -> None:
        _check_ratio(self.ratio)

    def num_kept(self, grid: Size) -> int:
        """Context tokens of a frame."""
        return _num_kept(grid[1] * grid[2], self.ratio)

    def check(self, grid: Size) -> None:
        """Raise ValueError if a frame of this grid has no context or no target."""
        _check_kept(self.num_kept(grid), grid[1] * grid[2], self.ratio, "tokens of a frame")


@dataclass(frozen=True)
class RandomTokens:
    """Targets are random tokens anywhere in the clip.

    Attributes:
        ratio: fraction of the clip's tokens that are targets, rounded as for `RandomTube`.

    Raises:
        ValueError: a ratio outside (0, 1).
    """

    ratio: float

    def __post_init__(self) -> None:
        _check_ratio(self.ratio)

    def num_kept(self, grid: Size) -> int:
        """Context tokens of a clip."""
        return _num_kept(math.prod(grid), self.ratio)

    def check(self, grid: Size) -> None:
        """Raise ValueError if a clip on this grid has no context or no target."""
        _check_kept(self.num_kept(grid), math.prod(grid), self.ratio, "tokens of a clip")


Variant = MultiBlock | RandomTube | RandomTokens
"""A spec that is no mixture; a mixture chooses among several variants, any other spec is its own
only variant."""


@dataclass(frozen=True)
class Mixture:
    """Each clip is masked by one of several specs, chosen at random.

    Attributes:
        specs: at least one MultiBlock, RandomTube or RandomTokens.
        weights: relative frequency of each; None means equal.

    Raises:
        ValueError: anything else.
    """

    specs: tuple[Variant, ...]
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        specs = tuple(self.specs) if isinstance(self.specs, Sequence) else ()
        if not 1 <= len(specs) < 2**12 or not all(isinstance(spec, Variant) for spec in specs):
            raise ValueError(
                f"mixture specs: found {self.specs!r}, expected MultiBlock, RandomTube or "
                "RandomTokens specs; give 1 to 4095 of them"
            )
        object.__setattr__(self, "specs", specs)
        if self.weights is None:
            return
        weights = tuple(self.weights) if isinstance(self.weights, Sequence) else ()
        if (
            len(weights) != len(specs)
            or not all(is_real(w) and w > 0 for w in weights)
            or not math.isfinite(sum(map(float, weights)))
        ):
            raise ValueError(
                f"mixture weights: found {self.weights!r}, expected {len(specs)} positive numbers "
                "with a finite sum; give one for each spec"
            )
        object.__setattr__(self, "weights", tuple(map(float, weights)))

    def cumulative(self) -> list[float]:
        """Cumulative probabilities of the specs."""
        sums = list(accumulate(self.weights or [1.0] * len(self.specs)))
        return [part / sums[-1] for part in sums]

    def check(self, grid: Size) -> None:
        """Raise ValueError if one of the specs is impossible on this grid."""
        for index, spec in enumerate(self.specs):
            try:
                spec.check(grid)
            except ValueError as error:
                raise ValueError(f"spec {index} of the mixture: {error}") from error


MaskSpec = Variant | Mixture


def variants(spec: MaskSpec) -> tuple[Variant, ...]:
    """A mixture's specs, or the spec itself."""
    return spec.specs if isinstance(spec, Mixture) else (spec,)


def stream_part(spec: MaskSpec, index: int, variant: int) -> int:
    """The part of `philox.substream` for a variant of spec `index`; unique for each variant."""
    return index | (variant + 1) << 12 if isinstance(spec, Mixture) else index


def check_grid(grid: Size) -> Size:
    """The grid (T', H', W') as a tuple of ints; ValueError unless it is three positive integers."""
    sides = tuple(grid) if isinstance(grid, tuple | list) else ()
    if len(sides) != 3 or not all(is_int(side) and side >= 1 for side in sides):
        raise ValueError(
            f"grid: found {grid!r}, expected three positive integers (time, height, width); "
            "give the clip's size in tokens"
        )
    if math.prod(sides) >= 2**31:
        raise ValueError(f"grid: found {grid!r}, expected under 2**31 tokens; give a smaller grid")
    return tuple(int(side) for side in sides)


def _between(ends: tuple[float, float], draw: float) -> float:
    return ends[0] + draw * (ends[1] - ends[0])


def _text(size: Size) -> str:
    return "x".join(map(str, size))


def _num_kept(count: int, ratio: float) -> int:
    # 1.0 - 0.9 is slightly below 0.1, so an exact integer would be rounded down to the one below.
    return int(count * (1.0 - ratio) + 1e-9)


def _check_range(name: str, value: object, least: float, most: float) -> tuple[float, float]:
    pair = tuple(value) if isinstance(value, tuple | list) else ()
    if len(pair) == 2 and all(map(is_real, pair)):
        low, high = map(float, pair)
        if low > 0 and least <= low <= high <= most:
            return low, high
    limits = "0 < low <= high <= 1" if not least else "2**-31 <= low <= high <= 2**31"
    raise ValueError(
        f"{name}: found {value!r}, expected [low, high] with {limits}; give an ascending pair"
    )


def _check_ratio(ratio: object) -> None:
    if not is_real(ratio) or not 0 < ratio < 1:
        raise ValueError(
            f"ratio: found {ratio!r}, expected a number above 0 and below 1; give the fraction of "
            "targets"
        )


def _check_kept(kept: int, count: int, ratio: float, what: str) -> None:
    if not 1 <= kept < count:
        raise ValueError(
            f"ratio: found {ratio!r}, which leaves {kept} of the {count} {what} as context, "
            "expected some context and some target; give another ratio"
        )
