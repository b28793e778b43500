"""This rank's fp32 master weights, reduced gradients and Adam moments, whatever optimiser class
DeepSpeed made: each keeps them under names of its own.

| stage | weights | class                    | masters                                          |
|-------|---------|--------------------------|--------------------------------------------------|
| 0     | fp32    | the torch optimiser      | the parameters themselves, whole on every rank   |
| 1, 2  | any     | DeepSpeedZeroOptimizer   | one flat partition of each parameter group       |
| 1     | bf16    | BF16_Optimizer           | the same                                         |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class GroupShard:
    """This rank's share of one parameter group's flat vector.

    Attributes:
        name: of the group, e.g. "encoder.decay".
        parameters: model parameters in flat order.
        masters: fp32 tensors that the optimiser steps, laid end to end; the last may be padded.
        start: where masters[0] begins in the group's flat vector.
        size: elements of the flat vector without padding.
        sharded: whether other ranks hold other shares (else all hold the same).
    """

    name: str
    parameters: Sequence[Tensor]
    masters: Sequence[Tensor]
    start: int
    size: int
    sharded: bool

    @property
    def length(self) -> int:
        """Elements of this share without padding."""
        return max(0, min(sum(m.numel() for m in self.masters), self.size - self.start))


def unwrap(optimizer: object) -> torch.optim.Optimizer:
    """The torch optimiser inside a DeepSpeed one."""
    return optimizer if isinstance(optimizer, torch.optim.Optimizer) else optimizer.optimizer


def _flat_groups(optimizer: object) -> tuple[list[Sequence[Tensor]], list[Tensor]]:
    """Parameters in flat order and the fp32 partition, for each group of a ZeRO optimiser."""
    if isinstance(optimizer, DeepSpeedZeroOptimizer):
        return optimizer.round_robin_bit16_groups, optimizer.single_partition_of_fp32_groups
    if isinstance(optimizer, BF16_Optimizer):
        return optimizer.bf16_groups, optimizer.fp32_groups_flat_partition
    raise TypeError(
        f"optimizer: found {type(optimizer).__name__}, expected the torch optimiser (stage 0, "
        "fp32), DeepSpeedZeroOptimizer or BF16_Optimizer; teach training/shards.py where this one "
        "keeps its fp32 masters"
    )


def master_shards(optimizer: object) -> list[GroupShard]:
    """This rank's fp32 masters by parameter group.

    Raises:
        TypeError: an optimiser class whose masters we don't know how to find.
    """
    groups = unwrap(optimizer).param_groups
    if isinstance(optimizer, torch.optim.Optimizer):
        return [
            GroupShard(
                name=group["name"],
                parameters=group["params"],
                masters=group["params"],
                start=0,
                size=sum(p.numel() for p in group["params"]),
                sharded=False,
            )
            for group in groups
        ]
    rank, world = dist.get_rank(), dist.get_world_size()
    shards = []
    for group, parameters, partition in zip(groups, *_flat_groups(optimizer), strict=True):
        size = sum(p.numel() for p in parameters)
        if not size <= partition.numel() * world:
            raise RuntimeError(f"{group['name']}: partitions hold less than its {size} elements")
        shards.append(
            GroupShard(
                name=group["name"],
                parameters=parameters,
                masters=[partition],
                start=rank * partition.numel(),
                size=size,
                sharded=world > 1,
            )
        )
    return shards


def gradient_shards(optimizer: object) -> list[list[Tensor]]:
    """This rank's reduced gradients by parameter group, after the last backward of a step.

    Writing to them changes what the optimiser will use. ZeRO's lists may hold pieces of parameters.
    """
    if isinstance(optimizer, torch.optim.Optimizer):
        return [[p.grad for p in group["params"]] for group in optimizer.param_groups]
    if isinstance(optimizer, DeepSpeedZeroOptimizer):
        return [list(optimizer.averaged_gradients[i]) for i in range(len(optimizer.bit16_groups))]
    if isinstance(optimizer, BF16_Optimizer):
        return [[flat] for flat in optimizer.fp32_groups_gradient_flat_partition]
    raise TypeError(f"optimizer: found {type(optimizer).__name__}, see master_shards")


@torch.no_grad()
def clip_gradients(optimizer: object, max_norm: float | None) -> dict[str, Tensor]:
    """Clip the encoder's and the predictor's gradients, each to its own global norm.

    The published recipe clips the two apart; DeepSpeed's own clip would take one norm over both.
    Squared norms are summed over the shards and over ranks; nothing waits for the device.

    Args:
        optimizer: DeepSpeed's, after the last backward of a step.
        max_norm: largest norm; None only measures.

    Returns:
        Norm before clipping of each part ("encoder", "predictor"), fp32 scalars on the device.
    """
    shards, gradients = master_shards(optimizer), gradient_shards(optimizer)
    parts: dict[str, list[Tensor]] = {}
    for shard, tensors in zip(shards, gradients, strict=True):
        parts.setdefault(shard.name.partition(".")[0], []).extend(tensors)
    squares = torch.stack(
        [torch.stack(torch._foreach_norm(g)).float().square().sum() for g in parts.values()]
    )
    if any(shard.sharded for shard in shards):
        dist.all_reduce(squares)
    norms = squares.sqrt()
    if max_norm is not None:
        for tensors, norm in zip(parts.values(), norms, strict=True):
            torch._foreach_mul_(tensors, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return dict(zip(parts, norms, strict=True))


def adam_moments(optimizer: object, shard: GroupShard, moment: str) -> list[Tensor]:
    """Adam's moment for each of the shard's masters; zeros before the first step."""
    state = unwrap(optimizer).state
    return [state[m].get(moment, torch.zeros_like(m)) for m in shard.masters]


@torch.no_grad()
def restore_adam(
    optimizer: object, shard: GroupShard, moments: dict[str, Tensor], steps: int
) -> None:
    """Set Adam's moments from flat fp32 vectors that lie along the shard, after `steps` steps."""
    state, offset = unwrap(optimizer).state, 0
    for master in shard.masters:
        own = {"step": torch.tensor(float(steps), device=master.device)}
        for name in MOMENTS:
            own[name] = torch.zeros_like(master)
            piece = moments[name][offset : offset + master.numel()]
            own[name].view(-1)[: piece.numel()].copy_(piece)
        state[master] = own
        offset += master.numel()


@torch.no_grad()
def restore_masters(optimizer: object, shard: GroupShard, values: Tensor) -> None:
    """Set the masters from a flat fp32 vector that lies along the shard."""
    offset = 0
    for master in shard.masters:
        piece = values[offset : offset + master.numel()]
        master.view(-1)[: piece.numel()].copy_(piece)
        offset += master.numel()


def publish_masters(optimizer: object) -> None:
    """Cast the masters into the model's parameters on every rank (after a restore)."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        optimizer.update_lp_params()
