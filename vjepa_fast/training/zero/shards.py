"""Which elements of each parameter group's flat vector a rank holds; imports no DeepSpeed.

A parameter group's flat vector is its parameters, flattened and concatenated in order. ZeRO splits
it over ranks in one of two ways: one contiguous partition per rank (`one_partition`, stages 1 and
2), or one partition of every parameter per rank (`partition_each`, stage 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Range:
    """A run of consecutive elements of a group's flat vector, held by one rank.

    Attributes:
        start: position of the first element in the flat vector.
        count: number of elements.
        offset: position of the first element in the shard's masters, concatenated.
    """

    start: int
    count: int
    offset: int


@dataclass(frozen=True)
class GroupShard:
    """This rank's shard of one parameter group's flat vector.

    Attributes:
        name: name of the group, part and decay, e.g. "encoder.decay" or "predictor.no_decay".
        part: "encoder" or "predictor".
        names: the model's parameters in flat order, e.g. "encoder.blocks.0.norm1.weight".
        shapes: shapes of these parameters, unsharded.
        parameters: the same parameters. At stage 3 they are empty outside a forward pass.
        masters: fp32 tensors that the optimizer steps; concatenated, they are the shard with its
            padding.
        layout: for each rank that holds a shard, the ranges in it; a single one where every rank
            holds the whole vector.
        rank: index of this shard in `layout`.
        size: elements of the flat vector without padding.
    """

    name: str
    part: str
    names: Sequence[str]
    shapes: Sequence[Sequence[int]]
    parameters: Sequence[Tensor]
    masters: Sequence[Tensor]
    layout: Sequence[Sequence[Range]]
    rank: int
    size: int

    @property
    def sharded(self) -> bool:
        """Whether other ranks hold other shards; if not, all ranks hold the whole vector."""
        return len(self.layout) > 1

    @property
    def ranges(self) -> Sequence[Range]:
        """The ranges in this shard."""
        return self.layout[self.rank]

    @property
    def in_order(self) -> bool:
        """Whether the concatenated shards of all ranks are the flat vector, padding at its end."""
        length = sum(m.numel() for m in self.masters)
        return all(
            r.start == rank * length + r.offset
            for rank, ranges in enumerate(self.layout)
            for r in ranges
            if r.count
        )

    def read(self, tensors: Sequence[Tensor]) -> Tensor:
        """Concatenate the ranges' elements of tensors laid out as the masters are; a copy, flat."""
        flats = [t.detach().reshape(-1) for t in tensors]
        flat = flats[0] if len(flats) == 1 else torch.cat(flats)
        return torch.cat([flat[:0], *(flat[r.offset : r.offset + r.count] for r in self.ranges)])

    @torch.no_grad()
    def write(self, values: Tensor, tensors: Sequence[Tensor]) -> None:
        """Write the ranges' elements into tensors laid out as the masters are; inverts `read`.

        Padding becomes zero.
        """
        flat = values.new_zeros(sum(t.numel() for t in tensors))
        position = 0
        for r in self.ranges:
            flat[r.offset : r.offset + r.count] = values[position : position + r.count]
            position += r.count
        pieces = flat.split([t.numel() for t in tensors])
        for tensor, piece in zip(tensors, pieces, strict=True):
            tensor.view(-1).copy_(piece)


def one_partition(size: int, length: int, world: int) -> list[list[Range]]:
    """The layout of a flat vector split into one partition per rank; the last ones are padded.

    Args:
        size: elements of the flat vector.
        length: elements of a partition, with padding.
        world: number of ranks.
    """
    starts = [min(size, rank * length) for rank in range(world)]
    return [[Range(start, min(length, size - start), 0)] for start in starts]


def partition_each(sizes: Sequence[int], lengths: Sequence[int], world: int) -> list[list[Range]]:
    """The layout of a flat vector of which each parameter is split into one partition per rank.

    Args:
        sizes: elements of each parameter.
        lengths: elements of each parameter's partition, with padding.
        world: number of ranks.
    """
    layout: list[list[Range]] = []
    for rank in range(world):
        ranges: list[Range] = []
        first = offset = 0  # of the parameter in the flat vector, of its partition in the shard
        for size, length in zip(sizes, lengths, strict=True):
            start = min(size, rank * length)
            count = min(length, size - start)
            last = ranges[-1] if ranges else None
            joins = last and (last.start + last.count, last.offset + last.count) == (
                first + start,
                offset,
            )
            if joins:
                ranges[-1] = Range(last.start, last.count + count, last.offset)
            elif count:
                ranges.append(Range(first + start, count, offset))
            first, offset = first + size, offset + length
        layout.append(ranges)
    return layout
