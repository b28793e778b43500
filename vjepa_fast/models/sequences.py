"""Where sequences begin and end on the flat token axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import torch
from torch import Tensor


@dataclass(frozen=True)
class SeqLayout:
    """Sequences laid end to end in a tensor of [rows, …].

    The lengths stay on the host, so that choosing an attention path costs no device sync.
    """

    lengths: tuple[int, ...]
    device: torch.device

    @staticmethod
    def of(lengths: Sequence[int], device: torch.device | str = "cpu") -> SeqLayout:
        """Layout of sequences with these lengths, all positive."""
        lengths = tuple(int(n) for n in lengths)
        if not lengths or min(lengths) < 1:
            raise ValueError(f"lengths: found {lengths[:8]}, expected positive lengths")
        return SeqLayout(lengths, torch.device(device))

    @cached_property
    def rows(self) -> int:
        """Length of the flat axis."""
        return sum(self.lengths)

    @cached_property
    def longest(self) -> int:
        """Length of the longest sequence."""
        return max(self.lengths)

    @cached_property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """(sequences, length) of each run of neighbours with equal lengths."""
        return tuple((len(list(run)), length) for length, run in groupby(self.lengths))

    @cached_property
    def cu_seqlens(self) -> Tensor:
        """Offsets of the sequences, int32 [sequences + 1], on the layout's device."""
        lengths = torch.tensor((0, *self.lengths), dtype=torch.int32)
        return lengths.cumsum(0, dtype=torch.int32).to(self.device, non_blocking=True)
