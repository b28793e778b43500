"""What a probe learns from: batches of token features, whichever way they come about."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from torch import Tensor

Featurize = Callable[[Tensor], Tensor]  # uint8 [B, T, H, W, 3] on the device → [B, N, D]
Order = Iterable[tuple[int, np.ndarray]]  # (epoch, row numbers of a global batch, int64 [n])


@dataclass(frozen=True)
class FeatureBatch:
    """A process's part of a global batch; it may be empty.

    Attributes:
        rows: the videos, int64 [b], on the host.
        tokens: fp32 or bf16 [b, V, S · N, D] on the source's device: the tokens of all segments of
            each of V spatial views, segment 0 first.
        left_out: the part's videos without features, and why.
    """

    rows: Tensor
    tokens: Tensor
    left_out: Mapping[int, str] = field(default_factory=dict)


class FeatureSource(Protocol):
    """Gives features of the views of videos, in any order, any number of times."""

    def batches(self, order: Order) -> Iterator[FeatureBatch]:
        """This process's part of each global batch, in order.

        Args:
            order: read ahead of what is yielded. It is the same in every process; this one's part
                of rows is rows[rank::world].
        """
        ...


@dataclass(frozen=True)
class Share:
    """Which of `world` processes this one is, counted from 0."""

    rank: int = 0
    world: int = 1

    def part(self, rows: np.ndarray) -> np.ndarray:
        """This process's rows."""
        return np.asarray(rows, dtype=np.int64)[self.rank :: self.world]


ALONE = Share()
