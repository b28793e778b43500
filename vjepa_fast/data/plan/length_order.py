"""Which video a draw shows where the sources have clips of several lengths."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vjepa_fast.data.plan.video_order import (
    MIXTURE_BLOCK,
    VideoOrder,
    block_slots,
    proportional_slots,
)
from vjepa_fast.errors import UserError

_MOST = 21  # lengths, see `VideoOrder`
# Steps of MIXTURE_BLOCK / golden ratio around the block, coprime to it: any number of consecutive
# groups is spread over the block nearly evenly (Knuth, TAOCP 3, section 6.4).
_STRIDE = 6181


class LengthOrder:
    """Maps draws to videos, so that each group of consecutive draws shows clips of one length.

    Each block of 10,000 groups holds every length exactly in proportion to the weights of its
    sources (without weights, to their videos). The lengths take turns evenly: any consecutive
    groups, such as those of an optimizer step, hold nearly the same part of each. Within a length,
    a `VideoOrder` goes through its sources as if there were no other length. So with one length
    this is `VideoOrder`, whatever the group.

    Args:
        sizes: number of videos of each source; videos are numbered one source after another.
        lengths: frames of the clips of each source.
        weights: one for each source, or None.
        seed: seed of all orders.
        group: draws of a group.

    Raises:
        UserError: more than 21 lengths, or one with too small a part; or see `VideoOrder`.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        lengths: Sequence[int],
        weights: Sequence[float] | None,
        seed: int,
        group: int,
    ) -> None:
        self._lengths = list(dict.fromkeys(lengths))
        if len(self._lengths) > _MOST:
            raise UserError(
                f"data.manifests: found {len(self._lengths)} different numbers of frames, expected "
                f"at most {_MOST}; give several manifests the same num_frames"
            )
        if weights is not None:
            block_slots(sizes, weights)  # the checks
        self._group = group
        self._sources = [np.flatnonzero(np.array(lengths) == length) for length in self._lengths]
        self._starts = np.cumsum([0, *sizes])
        sizes = np.array(sizes)
        self._orders = [
            VideoOrder(
                sizes[sources].tolist(),
                None if weights is None else [weights[source] for source in sources],
                seed,
                number,
            )
            for number, sources in enumerate(self._sources)
        ]
        shares = sizes.tolist() if weights is None else weights
        totals = np.array([sum(shares[i] for i in sources) for sources in self._sources], float)
        slots = proportional_slots(totals)
        if slots.min() == 0:
            rare = int(slots.argmin())
            raise UserError(
                f"data.manifests[{self._sources[rare][0]}]: found clips of {self._lengths[rare]} "
                f"frames with a share of {totals[rare] / totals.sum():.1g} of all clips, expected "
                f"at least 1/{MIXTURE_BLOCK}; give it more by data.weights, or remove this manifest"
            )
        # Of each group of a block: its length, and how many groups of that length come before it.
        turns = np.arange(MIXTURE_BLOCK) * _STRIDE % MIXTURE_BLOCK
        self._length_of = np.searchsorted(np.cumsum(slots), turns, side="right")
        self._before = np.empty(MIXTURE_BLOCK, dtype=np.int64)
        for number, count in enumerate(slots):
            self._before[self._length_of == number] = np.arange(count)
        self._slots = slots

    def length(self, draw: int) -> int:
        """Frames of the clips of a draw (>= 0)."""
        return self._lengths[self._length_of[draw // self._group % MIXTURE_BLOCK]]

    def videos(self, draws: np.ndarray) -> np.ndarray:
        """Draws, int64 [n], each >= 0 -> video numbers, int64 [n]."""
        numbers, own = self._own_draws(draws)
        videos = np.empty_like(draws)
        for number in np.unique(numbers):
            chosen = numbers == number
            videos[chosen] = self._numbered(number, self._orders[number].videos(own[chosen]))
        return videos

    def replacement(self, draw: int, attempt: int) -> int:
        """The video that replaces a draw's own at the attempt-th attempt, see
        `VideoOrder.replacement`; it is of the same source, or length without weights.
        """
        numbers, own = self._own_draws(np.array([draw]))
        order = self._orders[numbers[0]]
        other = order.replacement(draw, int(order.videos(own)[0]), attempt)
        return int(self._numbered(numbers[0], np.array([other]))[0])

    def _own_draws(self, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The number of each draw's length, and its place among the draws of that length."""
        groups, within = np.divmod(draws, self._group)
        blocks, groups = np.divmod(groups, MIXTURE_BLOCK)
        numbers = self._length_of[groups]
        own_groups = blocks * self._slots[numbers] + self._before[groups]
        return numbers, own_groups * self._group + within

    def _numbered(self, number: int, videos: np.ndarray) -> np.ndarray:
        """Video numbers within a length, int64 [n], as numbers of all videos."""
        sources = self._sources[number]
        sizes = np.diff(self._starts)[sources]
        ends = np.cumsum(sizes)
        position = np.searchsorted(ends, videos, side="right")
        return videos - (ends - sizes)[position] + self._starts[sources][position]
