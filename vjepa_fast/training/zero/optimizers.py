"""One adapter for each optimizer class that DeepSpeed makes: masters, gradients, reduction, step.

| adapter        | stage | weights | DeepSpeed's class             | masters (fp32)                |
|----------------|-------|---------|-------------------------------|-------------------------------|
| PlainOptimizer | 0     | fp32    | the torch optimizer itself    | the parameters, on every rank |
| Zero12         | 1, 2  | any     | DeepSpeedZeroOptimizer        | one partition per group       |
| Bf16           | 1     | bf16    | BF16_Optimizer                | one partition per group       |
| Zero3          | 3     | any     | DeepSpeedZeroOptimizer_Stage3 | partitions of each parameter, |
|                |       |         |                               | concatenated per group        |

Stage 1 in bf16 with an offloaded optimizer is Zero12. Offloaded masters, gradients and moments are
the same tensors in host memory.

All adapters have:

    torch                    the torch optimizer that steps the masters
    shards                   this rank's `GroupShard` of each parameter group
    sharded                  whether gradients are split over ranks after the reduction
    gradients()              this rank's reduced gradients of each shard
    reduce_gradients()       averages over ranks what the backward pass has not reduced yet
    copy_masters_to_model()  casts the masters into the model's parameters (after a restore)

Bf16 and Zero3 also replace the `step` of DeepSpeed's optimizer, which would take a gradient norm
and read it on the host at every step. Zero12 turns that off by its config (`engine.py`).

This file relies on names that DeepSpeed keeps private or does not document. They were read in
DeepSpeed 0.19.8; check each of them when that version changes:

    DeepSpeedEngine                enable_backward_allreduce
    DeepSpeedZeroOptimizer         round_robin_bit16_groups, single_partition_of_fp32_groups,
                                   averaged_gradients, cpu_offload, _wait_for_offload_copies,
                                   update_lp_params
    BF16_Optimizer                 bf16_groups, fp32_groups_flat_partition,
                                   fp32_groups_gradients_flat, fp32_groups_gradient_flat_partition,
                                   overflow, update_lp_params, clear_hp_grads
    DeepSpeedZeroOptimizer_Stage3  fp16_groups, fp32_partitioned_groups_flat, averaged_gradients,
                                   offload_optimizer, persistent_parameters, overflow, _pre_step,
                                   _partition_all_parameters, _prepare_sub_group, _optimizer_step,
                                   _reassign_or_swap_out_partitioned_parameters,
                                   _release_sub_group, reset_cpu_buffers
    its parameters                 ds_shape, ds_numel, partition_numel, all_gather_coalesced
    all of the optimizers          optimizer (the torch optimizer inside)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor

from vjepa_fast.training.zero.shards import GroupShard, Range, one_partition, partition_each

MOMENTS = ("exp_avg", "exp_avg_sq")


class PlainOptimizer:
    """Stage 0: every rank steps the fp32 parameters themselves."""

    sharded = False

    def __init__(self, engine: DeepSpeedEngine) -> None:
        self.torch: torch.optim.Optimizer = engine.optimizer
        if dist.get_world_size() == 1:
            engine.enable_backward_allreduce = False  # it copies all gradients, even for one rank
        groups = [group["params"] for group in self.torch.param_groups]
        layouts = [[[Range(0, sum(p.numel() for p in group), 0)]] for group in groups]
        self.shards = _make_shards(engine, self.torch, groups, groups, layouts, rank=0)

    def gradients(self) -> list[list[Tensor]]:
        return [[p.grad for p in group["params"]] for group in self.torch.param_groups]

    def reduce_gradients(self) -> None:
        """Nothing: the backward pass all-reduces."""

    def copy_masters_to_model(self) -> None:
        """Nothing: the parameters are the masters."""


class Zero12:
    """Stages 1 and 2: each rank steps one flat fp32 partition of each group."""

    sharded = True

    def __init__(self, engine: DeepSpeedEngine) -> None:
        self._zero: DeepSpeedZeroOptimizer = engine.optimizer
        self.torch: torch.optim.Optimizer = self._zero.optimizer
        groups = self._zero.round_robin_bit16_groups
        self._masters = self._zero.single_partition_of_fp32_groups
        self.shards = _make_partitions(engine, self.torch, groups, self._masters)

    def gradients(self) -> list[list[Tensor]]:
        """Without padding, and in pieces of parameters, where not offloaded."""
        if self._zero.cpu_offload:
            self._zero._wait_for_offload_copies()  # its own step would only do so later
            return [[master.grad] for master in self._masters]
        return [list(self._zero.averaged_gradients[i]) for i in range(len(self._masters))]

    def reduce_gradients(self) -> None:
        """Nothing: the backward pass reduces."""

    def copy_masters_to_model(self) -> None:
        """Cast the masters into the model's parameters on every rank. Collective."""
        self._zero.update_lp_params()


class Bf16:
    """Stage 1 in bf16: as `Zero12`; gradients are accumulated in fp32 in one flat buffer."""

    sharded = True

    def __init__(self, engine: DeepSpeedEngine) -> None:
        self._bf16: BF16_Optimizer = engine.optimizer
        self.torch: torch.optim.Optimizer = self._bf16.optimizer
        engine.enable_backward_allreduce = False  # `reduce_gradients` replaces it
        self._bf16.step = self._step
        groups, masters = self._bf16.bf16_groups, self._bf16.fp32_groups_flat_partition
        self.shards = _make_partitions(engine, self.torch, groups, masters)

    def gradients(self) -> list[list[Tensor]]:
        return [[flat] for flat in self._bf16.fp32_groups_gradient_flat_partition]

    def reduce_gradients(self) -> None:
        """Reduce-scatter in fp32: half the bytes of the all-reduce that DeepSpeed has for this
        class. Collective."""
        world = dist.get_world_size()
        if world == 1:
            return
        for whole, own in zip(
            self._bf16.fp32_groups_gradients_flat,
            self._bf16.fp32_groups_gradient_flat_partition,
            strict=True,
        ):
            dist.reduce_scatter_tensor(own, whole)  # in place: own is a part of whole
            own.div_(world)

    def copy_masters_to_model(self) -> None:
        """Cast the masters into the model's parameters on every rank. Collective."""
        self._bf16.update_lp_params()

    def _step(self) -> None:
        bf16 = self._bf16
        bf16.overflow = False
        for master, gradient in zip(
            bf16.fp32_groups_flat_partition, bf16.fp32_groups_gradient_flat_partition, strict=True
        ):
            master.grad = gradient  # fp32, as `engine.deepspeed_config` asks
        self.torch.step()
        bf16.update_lp_params()
        bf16.clear_hp_grads()


class Zero3:
    """Stage 3: each rank steps its partition of every parameter, concatenated per group."""

    sharded = True

    def __init__(self, engine: DeepSpeedEngine) -> None:
        self._zero: DeepSpeedZeroOptimizer_Stage3 = engine.optimizer
        self.torch: torch.optim.Optimizer = self._zero.optimizer
        self._zero.step = self._step
        groups, self._masters = self._zero.fp16_groups, self._zero.fp32_partitioned_groups_flat
        layouts = []
        for group, master in zip(groups, self._masters, strict=True):
            sizes = [p.ds_numel for p in group]
            lengths = [p.partition_numel() for p in group]
            if sum(lengths) != master.numel():
                raise RuntimeError(
                    f"stage 3: found {master.numel()} masters, expected {sum(lengths)}"
                )
            layouts.append(partition_each(sizes, lengths, dist.get_world_size()))
        masters = [[master] for master in self._masters]
        rank = dist.get_rank()
        self.shards = _make_shards(engine, self.torch, groups, masters, layouts, rank)

    def gradients(self) -> list[list[Tensor]]:
        """Padding included; it is zero."""
        if self._zero.offload_optimizer:
            return [[master.grad] for master in self._masters]
        return [list(self._zero.averaged_gradients[i]) for i in range(len(self._masters))]

    def reduce_gradients(self) -> None:
        """Nothing: the backward pass reduces."""

    def copy_masters_to_model(self) -> None:
        """Cast the masters into the model's partitions on every rank. Collective."""
        self._zero._partition_all_parameters()
        for group in range(len(self._masters)):
            self._zero._reassign_or_swap_out_partitioned_parameters(group)
        self._gather_persistent()

    def _step(self) -> None:
        zero = self._zero
        zero._pre_step()
        zero._partition_all_parameters()
        zero.overflow = False
        if not zero.offload_optimizer:
            zero.zero_grad()
        for group in range(len(self._masters)):
            zero._prepare_sub_group(group, set())
            zero._optimizer_step(group)
            zero._reassign_or_swap_out_partitioned_parameters(group)
            zero._release_sub_group(group, set())
        if zero.offload_optimizer:
            zero.reset_cpu_buffers()
        self._gather_persistent()

    def _gather_persistent(self) -> None:
        """Update the small tensors that stage 3 keeps unsharded on every rank: in one all-gather,
        where DeepSpeed's own step has one for each."""
        persistent = self._zero.persistent_parameters
        if persistent:
            persistent[0].all_gather_coalesced(persistent).wait()


Optimizer = PlainOptimizer | Zero12 | Bf16 | Zero3


def adapt(engine: DeepSpeedEngine) -> Optimizer:
    """The adapter of an engine's optimizer; once per engine, since it changes some of its methods.

    Raises:
        TypeError: an optimizer class that no adapter is written for.
    """
    optimizer = engine.optimizer
    if isinstance(optimizer, torch.optim.Optimizer):
        return PlainOptimizer(engine)
    if isinstance(optimizer, DeepSpeedZeroOptimizer):
        return Zero12(engine)
    if isinstance(optimizer, BF16_Optimizer):
        return Bf16(engine)
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        return Zero3(engine)
    raise TypeError(
        f"optimizer: found {type(optimizer).__name__}, expected the torch optimizer (stage 0, "
        "fp32), DeepSpeedZeroOptimizer, DeepSpeedZeroOptimizer_Stage3 or BF16_Optimizer; write an "
        "adapter for it in training/zero/optimizers.py"
    )


@torch.no_grad()
def clip_gradients(
    optimizer: Optimizer, max_norm: float | None, device: torch.device
) -> dict[str, Tensor]:
    """Clip the gradients of each part of the model to that part's own global norm.

    The published pretraining clips encoder and predictor separately, and fine-tuning has one part;
    DeepSpeed's own clipping takes one norm over all. Squared norms are summed over shards and
    ranks, without a host sync unless the optimizer is offloaded.

    Args:
        optimizer: after the last backward pass of a step and `reduce_gradients`.
        max_norm: largest norm; None only measures.
        device: where ranks reduce; the gradients themselves may be offloaded.

    Returns:
        Norm before clipping of each part, by its name, fp32 scalars on the device.
    """
    parts: dict[str, list[Tensor]] = {}
    for shard, gradients in zip(optimizer.shards, optimizer.gradients(), strict=True):
        parts.setdefault(shard.part, []).extend(gradients)
    squares = torch.stack(
        [torch.stack(torch._foreach_norm(g)).float().square().sum() for g in parts.values()]
    ).to(device)
    if optimizer.sharded and dist.get_world_size() > 1:
        dist.all_reduce(squares)
    norms = squares.sqrt()
    if max_norm is not None:
        # A NaN would stay in the padding, which nothing else ever writes to.
        scales = (max_norm / (norms + 1e-6)).clamp(max=1.0).nan_to_num(nan=1.0)
        for gradients, scale in zip(parts.values(), scales, strict=True):
            torch._foreach_mul_(gradients, scale.to(gradients[0].device))
    return dict(zip(parts, norms, strict=True))


def adam_moments(optimizer: Optimizer, shard: GroupShard, moment: str) -> list[Tensor]:
    """One of Adam's `MOMENTS` for each of the shard's masters; zeros before the first step."""
    state = optimizer.torch.state
    return [state[m].get(moment, torch.zeros_like(m)) for m in shard.masters]


@torch.no_grad()
def restore_adam(
    optimizer: Optimizer, shard: GroupShard, moments: dict[str, Tensor], steps: int
) -> None:
    """Set Adam's state after `steps` steps.

    Args:
        moments: for each of `MOMENTS` an fp32 vector of the shard's ranges.
    """
    state = optimizer.torch.state
    for master in shard.masters:
        state[master] = {"step": torch.tensor(float(steps), device=master.device)}
        state[master] |= {name: torch.zeros_like(master) for name in MOMENTS}
    for name in MOMENTS:
        shard.write(moments[name], adam_moments(optimizer, shard, name))


def _make_partitions(
    engine: DeepSpeedEngine,
    optimizer: torch.optim.Optimizer,
    groups: Sequence[Sequence[Tensor]],
    masters: Sequence[Tensor],
) -> list[GroupShard]:
    """Shards of groups that are split into one flat partition per rank."""
    rank, world = dist.get_rank(), dist.get_world_size()
    layouts = [
        one_partition(sum(p.numel() for p in group), master.numel(), world)
        for group, master in zip(groups, masters, strict=True)
    ]
    return _make_shards(engine, optimizer, groups, [[m] for m in masters], layouts, rank)


def _make_shards(
    engine: DeepSpeedEngine,
    optimizer: torch.optim.Optimizer,
    groups: Sequence[Sequence[Tensor]],
    masters: Sequence[Sequence[Tensor]],
    layouts: Sequence[list[list[Range]]],
    rank: int,
) -> list[GroupShard]:
    """This rank's shards, with names and shapes of the parameters in each group's flat order."""
    names = {id(p): name for name, p in engine.module.named_parameters()}
    shards = []
    for settings, parameters, own, layout in zip(
        optimizer.param_groups, groups, masters, layouts, strict=True
    ):
        shapes = [list(getattr(p, "ds_shape", p.shape)) for p in parameters]
        shard = GroupShard(
            name=settings["name"],
            part=settings["part"],
            names=[names[id(p)] for p in parameters],
            shapes=shapes,
            parameters=parameters,
            masters=own,
            layout=layout,
            rank=rank,
            size=sum(map(math.prod, shapes)),
        )
        held = sum(r.count for ranges in layout for r in ranges)
        if held != shard.size:
            raise RuntimeError(
                f"{shard.name}: found {held} elements in partitions, expected {shard.size}"
            )
        shards.append(shard)
    return shards
