"""Which video a sample id stands for: every video once per epoch, in O(1), without history."""

from collections.abc import Sequence
from math import isqrt

import numpy as np

from vjepa_fast.errors import UserError
from vjepa_fast.masks.philox import STREAM_VIDEO_ORDER, draw, substream

_ROUNDS = 6
_HALF_BITS = 20  # a half of a position: up to 2**40 videos
_REPLACEMENTS = 2**16  # the parts of `permute` from here on order replacements, one for each pool
MIXTURE_BLOCK = 10_000


def permute(seed: int, part: int, cycle: np.ndarray, position: np.ndarray, size: int) -> np.ndarray:
    """The `position`-th element of a random order of 0 .. size-1, another order for each cycle.

    cycle, position: int64 of one shape, position in 0 .. size-1. Returns int64 of that shape.
    `part` keeps several orders under one seed apart.

    A Feistel network on pairs of digits to the base ceil(sqrt(size)) is a bijection of a set
    slightly larger than asked for; walking on until it lands inside (Black and Rogaway, "Ciphers
    with arbitrary finite domains", 2002) keeps it one.
    """
    base = isqrt(size - 1) + 1
    value = np.array(position, dtype=np.int64)
    cycle = np.asarray(cycle, dtype=np.int64)
    outside = np.arange(value.size)
    while outside.size:
        left, right = np.divmod(value[outside], base)
        for i in range(_ROUNDS):
            stream = substream(STREAM_VIDEO_ORDER, part * _ROUNDS + i)
            words = draw(seed, stream, cycle[outside] << _HALF_BITS | right, 1)[..., 0]
            left, right = right, (left + (words.astype(np.int64) * base >> 32)) % base
        value[outside] = left * base + right
        outside = outside[value[outside] >= size]
    return value


class VideoOrder:
    """Maps sample ids to videos, for pools (manifests) of `sizes` videos numbered one after
    another.

    Without weights all pools are one, and every epoch (as many samples as there are videos) shows
    every video once. With weights, each block of 10,000 sample ids holds every pool exactly in
    proportion to its weight (largest remainder), in random order, and each pool goes through its
    own epochs.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float] | None, seed: int) -> None:
        self._seed = seed
        if weights is None:
            sizes, shares = [sum(sizes)], [MIXTURE_BLOCK]
        else:
            shares = _shares(sizes, weights)
        self._sizes = list(sizes)
        self._ends = np.cumsum(shares)
        self._starts = self._ends - shares
        self._offsets = np.cumsum([0, *sizes])

    def videos(self, sample_ids: np.ndarray) -> np.ndarray:
        """Sample ids, int64 [n], each >= 0 -> video numbers, int64 [n]."""
        if len(self._sizes) == 1:
            return self._pick(0, sample_ids)
        block, slot = np.divmod(sample_ids, MIXTURE_BLOCK)
        slot = permute(self._seed, 0, block, slot, MIXTURE_BLOCK)
        pools = np.searchsorted(self._ends, slot, side="right")
        videos = np.empty_like(sample_ids)
        for pool in np.unique(pools):
            chosen = pools == pool
            share = self._ends[pool] - self._starts[pool]
            count = block[chosen] * share + slot[chosen] - self._starts[pool]
            videos[chosen] = self._pick(pool, count)
        return videos

    def replacement(self, sample_id: int, video: int, attempt: int) -> int:
        """The video that takes the place of `video` at a sample id, at the attempt-th (from 1 on)
        time of asking.

        It is of the same pool, so a mixture keeps its weights, and the attempts go through all the
        other videos of the pool. Raises UserError where there is no other, or no other left.
        """
        pool = int(np.searchsorted(self._offsets, video, side="right")) - 1
        others = self._sizes[pool] - 1
        if not others:
            raise UserError(
                "found no other video to take the place of an unusable one in a data set of one "
                "video, expected at least two, add videos"
            )
        if attempt > others:
            raise UserError(
                f"found all {others + 1} videos that sample {sample_id} could show unusable, "
                "expected one that decodes, index the videos again"
            )
        order = permute(
            self._seed, _REPLACEMENTS + pool, np.array([sample_id]), np.array([attempt - 1]), others
        )
        first = int(self._offsets[pool])
        return first + (video - first + 1 + int(order[0])) % self._sizes[pool]

    def _pick(self, pool: int, count: np.ndarray) -> np.ndarray:
        """The count-th video that is taken from a pool."""
        epoch, position = np.divmod(count, self._sizes[pool])
        order = permute(self._seed, 1 + int(pool), epoch, position, self._sizes[pool])
        return self._offsets[pool] + order


def _shares(sizes: Sequence[int], weights: Sequence[float]) -> np.ndarray:
    """How many of a block's samples each pool gets: int64, sums to MIXTURE_BLOCK."""
    if len(weights) != len(sizes):
        raise UserError(
            f"found {len(weights)} weights for {len(sizes)} manifests, expected one each, "
            "correct data.weights"
        )
    weights = np.asarray(weights, dtype=np.float64)
    if not (np.isfinite(weights).all() and (weights > 0).all()):
        raise UserError(
            f"found weights {weights.tolist()}, expected positive numbers, correct data.weights"
        )
    exact = weights / weights.sum() * MIXTURE_BLOCK
    shares = np.floor(exact).astype(np.int64)
    largest = np.argsort(shares - exact, kind="stable")[: MIXTURE_BLOCK - shares.sum()]
    shares[largest] += 1
    if shares.min() == 0:
        raise UserError(
            f"found a weight below 1/{MIXTURE_BLOCK} of the sum in {weights.tolist()}, expected "
            "more, raise it or leave that manifest out"
        )
    return shares
