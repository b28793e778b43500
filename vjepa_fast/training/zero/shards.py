"""This rank's fp32 master weights, reduced gradients and Adam moments, whatever optimiser class
DeepSpeed made: each keeps them under names of its own.

| stage | weights | class                         | masters                                     |
|-------|---------|-------------------------------|---------------------------------------------|
| 0     | fp32    | the torch optimiser           | the parameters, whole on every rank         |
| 1, 2  | any     | DeepSpeedZeroOptimizer        | one flat partition of each parameter group  |
| 1     | bf16    | BF16_Optimizer                | the same                                    |
| 3     | any     | DeepSpeedZeroOptimizer_Stage3 | partitions of each parameter, laid end to   |
|       |         |                               | end for each group                          |

Offloaded, they are the same tensors in the host's memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Range:
    """Elements of a group's flat vector, and where they lie in a share.

    Attributes:
        start: the first one's place in the flat vector.
        count: how many.
        place: the first one's place in the share's masters, laid end to end.
    """

    start: int
    count: int
    place: int


@dataclass(frozen=True)
class GroupShard:
    """This rank's share of one parameter group's flat vector.

    Attributes:
        name: of the group, e.g. "encoder.decay".
        parameters: model parameters in flat order. At stage 3 they are empty outside a forward.
        masters: fp32 tensors that the optimiser steps, laid end to end, with padding.
        layout: for each rank that holds a share, the ranges in it. One where all hold the whole.
        rank: whose of these shares this is.
        size: elements of the flat vector without padding.
    """

    name: str
    parameters: Sequence[Tensor]
    masters: Sequence[Tensor]
    layout: Sequence[Sequence[Range]]
    rank: int
    size: int

    @property
    def shapes(self) -> list[list[int]]:
        """The parameters' shapes, whole."""
        return [list(getattr(p, "ds_shape", p.shape)) for p in self.parameters]

    @property
    def sharded(self) -> bool:
        """Whether other ranks hold other shares (else all hold the same)."""
        return len(self.layout) > 1

    @property
    def ranges(self) -> Sequence[Range]:
        """What is in this share."""
        return self.layout[self.rank]

    @property
    def in_order(self) -> bool:
        """Whether the shares of all ranks, end to end, are the flat vector (padding at its end)."""
        room = sum(m.numel() for m in self.masters)
        return all(
            r.start == rank * room + r.place
            for rank, ranges in enumerate(self.layout)
            for r in ranges
            if r.count
        )

    def pick(self, tensors: Sequence[Tensor]) -> Tensor:
        """The ranges' elements, end to end, of tensors that lie as the masters do: a copy."""
        flats = [t.detach().reshape(-1) for t in tensors]
        flat = flats[0] if len(flats) == 1 else torch.cat(flats)
        return torch.cat([flat[:0], *(flat[r.place : r.place + r.count] for r in self.ranges)])

    @torch.no_grad()
    def place(self, values: Tensor, tensors: Sequence[Tensor]) -> None:
        """The inverse of `pick`: write the ranges' elements into tensors that lie as the masters.

        Padding becomes zero.
        """
        flat = values.new_zeros(sum(t.numel() for t in tensors))
        offset = 0
        for r in self.ranges:
            flat[r.place : r.place + r.count] = values[offset : offset + r.count]
            offset += r.count
        pieces = flat.split([t.numel() for t in tensors])
        for tensor, piece in zip(tensors, pieces, strict=True):
            tensor.view(-1).copy_(piece)


def _one_partition(size: int, length: int, world: int) -> list[list[Range]]:
    """The flat vector cut into one partition a rank, the last ones padded."""
    starts = [min(size, rank * length) for rank in range(world)]
    return [[Range(start, min(length, size - start), 0)] for start in starts]


def _partition_each(sizes: Sequence[int], lengths: Sequence[int], world: int) -> list[list[Range]]:
    """Each parameter cut into one partition a rank, whose last ones are padded."""
    layout: list[list[Range]] = []
    for rank in range(world):
        ranges, first, place = [], 0, 0
        for size, length in zip(sizes, lengths, strict=True):
            start = min(size, rank * length)
            count = min(length, size - start)
            last = ranges[-1] if ranges else None
            if last and (last.start + last.count, last.place + last.count) == (
                first + start,
                place,
            ):
                ranges[-1] = Range(last.start, last.count + count, last.place)
            elif count:
                ranges.append(Range(first + start, count, place))
            first, place = first + size, place + length
        layout.append(ranges)
    return layout


def unwrap(optimizer: object) -> torch.optim.Optimizer:
    """The torch optimiser inside a DeepSpeed one."""
    return optimizer if isinstance(optimizer, torch.optim.Optimizer) else optimizer.optimizer


def _flat_groups(optimizer: object) -> tuple[list[Sequence[Tensor]], list[Tensor]]:
    """Parameters in flat order and the fp32 partition, for each group of a ZeRO optimiser."""
    if isinstance(optimizer, DeepSpeedZeroOptimizer):
        return optimizer.round_robin_bit16_groups, optimizer.single_partition_of_fp32_groups
    if isinstance(optimizer, BF16_Optimizer):
        return optimizer.bf16_groups, optimizer.fp32_groups_flat_partition
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        return optimizer.fp16_groups, optimizer.fp32_partitioned_groups_flat
    raise TypeError(
        f"optimizer: found {type(optimizer).__name__}, expected the torch optimiser (stage 0, "
        "fp32), DeepSpeedZeroOptimizer, DeepSpeedZeroOptimizer_Stage3 or BF16_Optimizer; teach "
        "training/shards.py where this one keeps its fp32 masters"
    )


def _offloaded(optimizer: object) -> bool:
    """Whether a ZeRO optimiser keeps masters and gradients in the host's memory."""
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        return optimizer.offload_optimizer
    return isinstance(optimizer, DeepSpeedZeroOptimizer) and optimizer.cpu_offload


def master_shards(optimizer: object) -> list[GroupShard]:
    """This rank's fp32 masters by parameter group.

    Raises:
        TypeError: an optimiser class whose masters we don't know how to find.
    """
    groups = unwrap(optimizer).param_groups
    if isinstance(optimizer, torch.optim.Optimizer):
        shards = []
        for group in groups:
            size = sum(p.numel() for p in group["params"])
            whole = [[Range(0, size, 0)]]
            shards.append(
                GroupShard(group["name"], group["params"], group["params"], whole, 0, size)
            )
        return shards
    rank, world = dist.get_rank(), dist.get_world_size()
    shards = []
    for group, parameters, partition in zip(groups, *_flat_groups(optimizer), strict=True):
        if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
            sizes = [p.ds_numel for p in parameters]
            lengths = [p.partition_numel() for p in parameters]
            layout, room = _partition_each(sizes, lengths, world), sum(lengths)
        else:
            sizes = [p.numel() for p in parameters]
            layout = _one_partition(sum(sizes), partition.numel(), world)
            room = partition.numel()
        size = sum(sizes)
        if room != partition.numel() or sum(r.count for ranges in layout for r in ranges) != size:
            raise RuntimeError(f"{group['name']}: partitions do not hold its {size} elements")
        shards.append(GroupShard(group["name"], parameters, [partition], layout, rank, size))
    return shards


def gradient_shards(optimizer: object) -> list[list[Tensor]]:
    """This rank's reduced gradients by parameter group, after the last backward of a step.

    Writing to them changes what the optimiser will use. Laid end to end they lie as the masters do,
    less padding at stages 1 and 2; padding is zero. ZeRO's lists may hold pieces of parameters.
    """
    if isinstance(optimizer, torch.optim.Optimizer):
        return [[p.grad for p in group["params"]] for group in optimizer.param_groups]
    if isinstance(optimizer, BF16_Optimizer):
        return [[flat] for flat in optimizer.fp32_groups_gradient_flat_partition]
    parameters, partitions = _flat_groups(optimizer)
    if _offloaded(optimizer):
        if isinstance(optimizer, DeepSpeedZeroOptimizer):
            optimizer._wait_for_offload_copies()  # which its own step would only do later
        return [[partition.grad] for partition in partitions]
    return [list(optimizer.averaged_gradients[i]) for i in range(len(parameters))]


def reduce_gradients(optimizer: object) -> None:
    """Average a BF16_Optimizer's gradients over ranks, after the last backward of a step: each rank
    gets its own shard's, in fp32, which are half the bytes of the all-reduce that DeepSpeed has for
    this class. The other classes have reduced theirs in the backward pass. Collective."""
    world = dist.get_world_size()
    if isinstance(optimizer, BF16_Optimizer) and world > 1:
        for whole, mine in zip(
            optimizer.fp32_groups_gradients_flat,
            optimizer.fp32_groups_gradient_flat_partition,
            strict=True,
        ):
            dist.reduce_scatter_tensor(mine, whole)  # in place: mine is a part of whole
            mine.div_(world)


@torch.no_grad()
def clip_gradients(
    optimizer: object, max_norm: float | None, device: torch.device
) -> dict[str, Tensor]:
    """Clip the encoder's and the predictor's gradients, each to its own global norm.

    The published recipe clips the two apart; DeepSpeed's own clip would take one norm over both.
    Squared norms are summed over the shards and over ranks; nothing waits for the device, unless
    the optimiser is offloaded.

    Args:
        optimizer: DeepSpeed's, after the last backward of a step.
        max_norm: largest norm; None only measures.
        device: where ranks reduce and losses lie, which offloaded gradients don't.

    Returns:
        Norm before clipping of each part ("encoder", "predictor"), fp32 scalars on the device.
    """
    # Not `master_shards`, which lays out every rank's share: too much for each step.
    groups, parts = unwrap(optimizer).param_groups, {}
    for group, tensors in zip(groups, gradient_shards(optimizer), strict=True):
        parts.setdefault(group["name"].partition(".")[0], []).extend(tensors)
    squares = torch.stack(
        [torch.stack(torch._foreach_norm(g)).float().square().sum() for g in parts.values()]
    ).to(device)
    if not isinstance(optimizer, torch.optim.Optimizer) and dist.get_world_size() > 1:
        dist.all_reduce(squares)
    norms = squares.sqrt()
    if max_norm is not None:
        # A NaN would stay in padding, which nothing but this writes to, for all steps to come.
        scales = (max_norm / (norms + 1e-6)).clamp(max=1.0).nan_to_num(nan=1.0)
        for tensors, scale in zip(parts.values(), scales, strict=True):
            torch._foreach_mul_(tensors, scale.to(tensors[0].device))
    return dict(zip(parts, norms, strict=True))


def adam_moments(optimizer: object, shard: GroupShard, moment: str) -> list[Tensor]:
    """Adam's moment for each of the shard's masters; zeros before the first step."""
    state = unwrap(optimizer).state
    return [state[m].get(moment, torch.zeros_like(m)) for m in shard.masters]


@torch.no_grad()
def restore_adam(
    optimizer: object, shard: GroupShard, moments: dict[str, Tensor], steps: int
) -> None:
    """Set Adam's moments from fp32 vectors of the shard's ranges, after `steps` steps."""
    state = unwrap(optimizer).state
    for master in shard.masters:
        state[master] = {"step": torch.tensor(float(steps), device=master.device)}
        state[master] |= {name: torch.zeros_like(master) for name in MOMENTS}
    for name in MOMENTS:
        shard.place(moments[name], adam_moments(optimizer, shard, name))


def publish_masters(optimizer: object) -> None:
    """Cast the masters into the model's parameters on every rank (after a restore)."""
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        optimizer._partition_all_parameters()
        for number in range(len(optimizer.fp16_groups)):
            optimizer._reassign_or_swap_out_partitioned_parameters(number)
        gather_kept_whole(optimizer)
    elif not isinstance(optimizer, torch.optim.Optimizer):
        optimizer.update_lp_params()


def gather_kept_whole(optimizer: DeepSpeedZeroOptimizer_Stage3) -> None:
    """Bring the small tensors that stage 3 keeps whole up to date on every rank: all in one call,
    where DeepSpeed's own step makes one for each."""
    kept_whole = optimizer.persistent_parameters
    if kept_whole:
        kept_whole[0].all_gather_coalesced(kept_whole).wait()
