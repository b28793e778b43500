"""The mask specs without blocks, and mixtures of specs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from vjepa_fast.masks.specs import MultiBlock, Size, is_real


@dataclass(frozen=True)
class RandomTube:
    """The same random places are targets in every frame (arXiv 2404.08471, ablations; VideoMAE).

    ratio: share of the frame's places that are targets; floor((1 - ratio) * places) stay context,
        taking ratio for the decimal number that it stands for: of 100 places 0.9 leaves 10.

    Raises ValueError for a ratio outside (0, 1).
    """

    ratio: float

    def __post_init__(self) -> None:
        _check_ratio(self.ratio)

    def num_kept(self, grid: Size) -> int:
        """Context places of a frame."""
        return _num_kept(grid[1] * grid[2], self.ratio)

    def check(self, grid: Size) -> None:
        """Raise ValueError if a frame of this grid has no context or no target."""
        _check_kept(self.num_kept(grid), grid[1] * grid[2], self.ratio, "places of a frame")


@dataclass(frozen=True)
class RandomTokens:
    """Targets are random tokens anywhere in the clip.

    ratio: share of the clip's tokens that are targets; floor((1 - ratio) * tokens) stay context,
        taking ratio for the decimal number that it stands for.

    Raises ValueError for a ratio outside (0, 1).
    """

    ratio: float

    def __post_init__(self) -> None:
        _check_ratio(self.ratio)

    def num_kept(self, grid: Size) -> int:
        """Context tokens of a clip."""
        return _num_kept(grid[0] * grid[1] * grid[2], self.ratio)

    def check(self, grid: Size) -> None:
        """Raise ValueError if a clip on this grid has no context or no target."""
        num_tokens = grid[0] * grid[1] * grid[2]
        _check_kept(self.num_kept(grid), num_tokens, self.ratio, "tokens of a clip")


Strategy = MultiBlock | RandomTube | RandomTokens


@dataclass(frozen=True)
class Mixture:
    """Each clip is masked by one of several specs, chosen by chance.

    specs: at least one; multi-block, random tube or random tokens.
    weights: how often each is chosen, relative to the others; None: all alike.

    Raises ValueError for anything else.
    """

    specs: tuple[Strategy, ...]
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        specs = tuple(self.specs) if isinstance(self.specs, Sequence) else ()
        if not 1 <= len(specs) < 2**12 or not all(isinstance(spec, Strategy) for spec in specs):
            raise ValueError(
                f"found mixture specs {self.specs!r}, expected MultiBlock, RandomTube or "
                "RandomTokens ones, give 1 to 4095 of them"
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
                f"found mixture weights {self.weights!r}, expected {len(specs)} positive numbers "
                "with a finite sum, give one for each spec"
            )
        object.__setattr__(self, "weights", tuple(map(float, weights)))

    def cumulative(self) -> list[float]:
        """Probability that a spec or an earlier one is chosen."""
        sums = list(accumulate(self.weights or [1.0] * len(self.specs)))
        return [part / sums[-1] for part in sums]

    def check(self, grid: Size) -> None:
        """Raise ValueError if one of the specs is impossible on this grid."""
        for index, spec in enumerate(self.specs):
            try:
                spec.check(grid)
            except ValueError as error:
                raise ValueError(f"spec {index} of the mixture: {error}") from error


MaskSpec = Strategy | Mixture


def strategies(spec: MaskSpec) -> tuple[Strategy, ...]:
    """What a spec chooses from: a mixture's specs, or itself."""
    return spec.specs if isinstance(spec, Mixture) else (spec,)


def part(spec: MaskSpec, index: int, choice: int) -> int:
    """The part of the random streams that a strategy has to itself: spec `index`, its `choice`."""
    return index | (choice + 1) << 12 if isinstance(spec, Mixture) else index


def _check_ratio(ratio: object) -> None:
    if not is_real(ratio) or not 0 < ratio < 1:
        raise ValueError(
            f"found ratio {ratio!r}, expected a number above 0 and below 1, give the share of "
            "targets"
        )


def _num_kept(count: int, ratio: float) -> int:
    # 1.0 - 0.9 is a little less than the 0.1 that is meant, whose product may be a whole number.
    return int(count * (1.0 - ratio) + 1e-9)


def _check_kept(kept: int, count: int, ratio: float, what: str) -> None:
    if not 1 <= kept < count:
        raise ValueError(
            f"found ratio {ratio!r}, which leaves {kept} of the {count} {what} as context, "
            "expected some context and some target, give another ratio"
        )
