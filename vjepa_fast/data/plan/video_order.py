"""Which video a sample id shows: every video once per epoch, computed in O(1) from the id alone."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt

import numpy as np

from vjepa_fast.errors import UserError
from vjepa_fast.masks.philox import STREAM_VIDEO_ORDER, draw, substream

_ROUNDS = 6
_HALF_BITS = 20  # of a position: up to 2**40 videos
# Numbers of random orders under one seed, see `shuffled`: the mixture's blocks, the epochs of each
# source, and the replacements within each source.
_MIXTURE, _EPOCHS, _REPLACEMENTS = 0, 1, 2**16
_ORDERS = 2**17  # of one VideoOrder
MIXTURE_BLOCK = 10_000  # sample ids


def shuffled(
    seed: int, order: int, epoch: np.ndarray, position: np.ndarray, size: int
) -> np.ndarray:
    """The `position`-th element of a random order of 0 .. size-1; each epoch has its own order.

    A Feistel network on pairs of digits to the base ceil(sqrt(size)) is a bijection of a set
    slightly larger than needed. Repeating it until the value lies inside the set (cycle walking:
    Black and Rogaway, "Ciphers with arbitrary finite domains", 2002) gives a bijection of the set.

    Args:
        seed: seed of the random numbers.
        order: tells several orders under one seed apart.
        epoch: int64.
        position: int64, of the same shape, each in 0 .. size-1.
        size: number of elements.

    Returns:
        int64, of the shape of `position`.
    """
    base = isqrt(size - 1) + 1
    value = np.array(position, dtype=np.int64)
    epoch = np.asarray(epoch, dtype=np.int64)
    outside = np.arange(value.size)
    while outside.size:
        left, right = np.divmod(value[outside], base)
        for i in range(_ROUNDS):
            stream = substream(STREAM_VIDEO_ORDER, order * _ROUNDS + i)
            words = draw(seed, stream, epoch[outside] << _HALF_BITS | right, 1)[..., 0]
            left, right = right, (left + (words.astype(np.int64) * base >> 32)) % base
        value[outside] = left * base + right
        outside = outside[value[outside] >= size]
    return value


class VideoOrder:
    """Maps sample ids to videos of several sources (manifests), numbered one after another.

    Without weights all videos are one source, and every epoch (as many samples as there are videos)
    shows every video once. With weights, each block of 10,000 sample ids holds every source exactly
    in proportion to its weight (largest remainder), in random order, and each source goes through
    its own epochs.

    Args:
        sizes: number of videos of each source.
        weights: one for each source, or None.
        seed: seed of all orders.
        number: tells several VideoOrders under one seed apart, 0 .. 20.

    Raises:
        UserError: weights that are not positive, not one for each source, or too small.
    """

    def __init__(
        self, sizes: Sequence[int], weights: Sequence[float] | None, seed: int, number: int = 0
    ) -> None:
        self._seed = seed
        self._first_order = number * _ORDERS
        if weights is None:
            sizes, slots = [sum(sizes)], np.array([MIXTURE_BLOCK])
        else:
            slots = block_slots(sizes, weights)
        self._sizes = list(sizes)
        self._slots = slots
        self._ends = np.cumsum(slots)
        self._offsets = np.cumsum([0, *sizes])

    def videos(self, sample_ids: np.ndarray) -> np.ndarray:
        """Sample ids, int64 [n], each >= 0 -> video numbers, int64 [n]."""
        if len(self._sizes) == 1:
            return self._visited(0, sample_ids)
        block, slot = np.divmod(sample_ids, MIXTURE_BLOCK)
        slot = shuffled(self._seed, self._first_order + _MIXTURE, block, slot, MIXTURE_BLOCK)
        sources = np.searchsorted(self._ends, slot, side="right")
        videos = np.empty_like(sample_ids)
        for source in np.unique(sources):
            chosen = sources == source
            slots = self._slots[source]
            visit = block[chosen] * slots + slot[chosen] - (self._ends[source] - slots)
            videos[chosen] = self._visited(source, visit)
        return videos

    def replacement(self, sample_id: int, video: int, attempt: int) -> int:
        """The video that replaces `video` at a sample id, at the attempt-th attempt (from 1 on).

        It is of the same source, so a mixture keeps its weights; the attempts go through all the
        other videos of the source.

        Raises:
            UserError: there is no other video, or none left.
        """
        source = int(np.searchsorted(self._offsets, video, side="right")) - 1
        others = self._sizes[source] - 1
        if not others:
            raise UserError(
                "found no other video to replace a bad one, since the data set has only one "
                "video, expected at least two; add videos"
            )
        if attempt > others:
            raise UserError(
                f"found all {others + 1} videos that sample {sample_id} could show to be unusable, "
                "expected one that decodes; index the videos again"
            )
        order, position = self._first_order + _REPLACEMENTS + source, np.array([attempt - 1])
        step = int(shuffled(self._seed, order, np.array([sample_id]), position, others)[0])
        first = int(self._offsets[source])
        return first + (video - first + 1 + step) % self._sizes[source]

    def _visited(self, source: int, visit: np.ndarray) -> np.ndarray:
        """The videos at these visits (int64 [n], counted from 0) to a source."""
        epoch, position = np.divmod(visit, self._sizes[source])
        order = self._first_order + _EPOCHS + int(source)
        position = shuffled(self._seed, order, epoch, position, self._sizes[source])
        return self._offsets[source] + position


def block_slots(sizes: Sequence[int], weights: Sequence[float]) -> np.ndarray:
    """How many of a block each source gets, exactly in proportion to its weight (largest
    remainder): int64, sums to MIXTURE_BLOCK.
    """
    if len(weights) != len(sizes):
        raise UserError(
            f"data.weights: found {len(weights)} weights for {len(sizes)} manifests, expected one "
            "for each; add or remove weights"
        )
    weights = np.asarray(weights, dtype=np.float64)
    if not (np.isfinite(weights).all() and (weights > 0).all()):
        raise UserError(
            f"data.weights: found {weights.tolist()}, expected positive numbers as weights; "
            "correct them"
        )
    slots = proportional_slots(weights)
    if slots.min() == 0:
        raise UserError(
            f"data.weights: found a weight below 1/{MIXTURE_BLOCK} of the sum in "
            f"{weights.tolist()}, expected at least that; raise it or remove that manifest"
        )
    return slots


def proportional_slots(weights: np.ndarray) -> np.ndarray:
    """A block in proportion to positive weights, largest remainder: int64, may hold zeros."""
    exact = weights / weights.sum() * MIXTURE_BLOCK
    slots = np.floor(exact).astype(np.int64)
    largest = np.argsort(slots - exact, kind="stable")[: MIXTURE_BLOCK - slots.sum()]
    slots[largest] += 1
    return slots
