"""Which elements of each parameter group's flat vector a rank holds; imports no DeepSpeed.

A parameter group's flat vector is its parameters, flattened and concatenated in order. It is cut
into buckets of whole parameters, and each rank holds a slice of every bucket: our own stages 0 to 2
have buckets of many megabytes, each of which one call sends. DeepSpeed's stages 1 and 2 have one
bucket, and its stage 3 one for each parameter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

SMALLEST, LARGEST = 1 << 17, 1 << 25  # elements of a bucket, unless one parameter has more
SLICE = 1 << 16  # fewest elements of a slice of a full bucket
BUCKETS = 32  # of a model whose buckets are neither the smallest nor the largest
FIRST = 8  # the first bucket is so many times smaller, and the next ones grow to the full size
ALIGNED = 8  # a slice is a multiple of it: 16 bytes in bf16, as NCCL and GEMMs want them


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
class Bucket:
    """Consecutive parameters of a flat vector, of which each rank holds a slice.

    Attributes:
        parameters: their positions in the group.
        start: position of their first element in the flat vector.
        count: their elements, without padding.
        length: elements of a slice, with padding; rank r's begins at element r · length.
        offset: position of a slice in its rank's shard.
    """

    parameters: range
    start: int
    count: int
    length: int
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
        buckets: how the flat vector is cut, in order.
        layout: see `layout_of`; of a single slice where every rank holds the whole vector.
        rank: index of this shard in `layout`.
        size: elements of the flat vector without padding.
        one_call: whether the buckets are too small to send each by a call (stage 3).
    """

    name: str
    part: str
    names: Sequence[str]
    shapes: Sequence[Sequence[int]]
    parameters: Sequence[Tensor]
    masters: Sequence[Tensor]
    buckets: Sequence[Bucket]
    layout: Sequence[Sequence[Range]]
    rank: int
    size: int
    one_call: bool

    @property
    def sharded(self) -> bool:
        """Whether other ranks hold other shards; if not, all ranks hold the whole vector."""
        return len(self.layout) > 1

    @property
    def ranges(self) -> Sequence[Range]:
        """The ranges in this shard."""
        return self.layout[self.rank]

    def by_bucket(self, flat: Tensor) -> Sequence[Tensor]:
        """Views of a flat vector that is laid out as the shard: the slice of each bucket."""
        return flat.split([b.length for b in self.buckets])

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


def bucket_capacity(elements: int, slices: int) -> int:
    """Elements of a full bucket.

    Args:
        elements: of all parameters.
        slices: ranks that hold a slice of each bucket; many take longer for each call.
    """
    return max(SMALLEST, min(LARGEST, elements // BUCKETS), slices * SLICE)


def make_buckets(sizes: Sequence[int], slices: int, capacity: int) -> list[Bucket]:
    """Cut a flat vector into buckets of whole parameters.

    Large buckets make few calls. The first ones are smaller, since the backward pass ends with
    them, and the next forward pass waits for them: nothing hides their communication.

    Args:
        sizes: elements of each parameter.
        slices: ranks that hold a slice of each bucket.
        capacity: elements from which a bucket is full.
    """
    buckets: list[Bucket] = []
    first = start = offset = count = 0
    for index, size in enumerate(sizes):
        count += size
        if count >= capacity * min(1.0, 2 ** len(buckets) / FIRST) or index + 1 == len(sizes):
            length = -(-count // (slices * ALIGNED)) * ALIGNED
            buckets.append(Bucket(range(first, index + 1), start, count, length, offset))
            first, start, offset, count = index + 1, start + count, offset + length, 0
    return buckets


def bucket_each(sizes: Sequence[int], lengths: Sequence[int]) -> list[Bucket]:
    """A bucket for each parameter.

    Args:
        sizes: elements of each parameter.
        lengths: elements of each parameter's slices, with padding.
    """
    buckets: list[Bucket] = []
    start = offset = 0
    for index, (size, length) in enumerate(zip(sizes, lengths, strict=True)):
        buckets.append(Bucket(range(index, index + 1), start, size, length, offset))
        start, offset = start + size, offset + length
    return buckets


def layout_of(buckets: Sequence[Bucket], slices: int) -> list[list[Range]]:
    """For each rank that holds a slice of the buckets, the ranges in its shard; joined where they
    follow one another in the flat vector and in the shard."""
    layout: list[list[Range]] = []
    for rank in range(slices):
        ranges: list[Range] = []
        for bucket in buckets:
            first = min(bucket.count, rank * bucket.length)
            count = min(bucket.length, bucket.count - first)
            own = Range(bucket.start + first, count, bucket.offset)
            last = ranges[-1] if ranges else None
            if last and (last.start + last.count, last.offset + last.count) == (
                own.start,
                own.offset,
            ):
                ranges[-1] = Range(last.start, last.count + count, last.offset)
            elif count:
                ranges.append(own)
        layout.append(ranges)
    return layout


def make_shards(
    model: nn.Module,
    settings: Sequence[dict],
    groups: Sequence[Sequence[Tensor]],
    masters: Sequence[Sequence[Tensor]],
    buckets: Sequence[Sequence[Bucket]],
    slices: int,
    rank: int,
    one_call: bool = False,
) -> list[GroupShard]:
    """A rank's shards, with names and shapes of the parameters in each group's flat order.

    Args:
        model: that the parameters belong to.
        settings: of each group, with its "name" and "part".
        groups: parameters of each group.
        masters: of each group, on this rank.
        buckets: of each group.
        slices: ranks that hold a slice of each bucket.
        rank: the one among them that holds this shard.
        one_call: see `GroupShard`.

    Raises:
        RuntimeError: the buckets don't hold every element once.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    shards = []
    for group, parameters, own, cut in zip(settings, groups, masters, buckets, strict=True):
        shapes = [list(getattr(p, "ds_shape", p.shape)) for p in parameters]  # ds_shape: stage 3
        shard = GroupShard(
            name=group["name"],
            part=group["part"],
            names=[names[id(p)] for p in parameters],
            shapes=shapes,
            parameters=parameters,
            masters=own,
            buckets=cut,
            layout=layout_of(cut, slices),
            rank=rank,
            size=sum(map(math.prod, shapes)),
            one_call=one_call,
        )
        held = sum(r.count for ranges in shard.layout for r in ranges)
        if held != shard.size:
            raise RuntimeError(
                f"{shard.name}: found {held} elements in shards, expected {shard.size}"
            )
        shards.append(shard)
    return shards
