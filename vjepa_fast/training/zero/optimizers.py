"""One adapter for each optimizer class: masters, gradients, reduction, step.

| adapter           | stage               | the engine's optimizer class  | masters (fp32)         |
|-------------------|---------------------|-------------------------------|------------------------|
| PlainOptimizer    | one process in fp32 | AdamW                         | the parameters         |
| BucketedOptimizer | 0, 1, 2             | AdamW                         | slices of buckets      |
| Zero12            | 1, 2, offloaded     | DeepSpeedZeroOptimizer        | a partition per group  |
| Zero3             | 3                   | DeepSpeedZeroOptimizer_Stage3 | partitions of each     |
|                   |                     |                               | parameter, per group   |

The first two are our own: the engine knows of no ZeRO and passes calls on. Offloaded masters,
gradients and moments are the same tensors in host memory.

All adapters have:

    torch                    the torch optimizer that steps the masters
    shards                   this rank's `GroupShard` of each parameter group
    sharded                  whether gradients are split over ranks after the reduction
    begin_backward()         before each backward pass of a step
    gradients()              this rank's reduced gradients of each shard
    reduce_gradients()       waits for the reduction that the backward pass began
    share_weights()          after a step: brings the model's parameters in line with the masters,
                             where the step has not
    wait_for_weights()       before the parameters are read other than by a forward pass
    copy_masters_to_model()  casts the masters into the model's parameters (after a restore)

Zero3 also replaces the `step` of DeepSpeed's optimizer, which would take a gradient norm and read
it on the host at every step.

This file relies on names that DeepSpeed keeps private or does not document. They were read in
DeepSpeed 0.19.8; check each of them when that version changes:

    DeepSpeedEngine                enable_backward_allreduce
    DeepSpeedZeroOptimizer         round_robin_bit16_groups, single_partition_of_fp32_groups,
                                   _wait_for_offload_copies, update_lp_params
    DeepSpeedZeroOptimizer_Stage3  fp16_groups, fp32_partitioned_groups_flat, averaged_gradients,
                                   offload_optimizer, persistent_parameters, overflow, _pre_step,
                                   _partition_all_parameters, _prepare_sub_group, _optimizer_step,
                                   _reassign_or_swap_out_partitioned_parameters,
                                   _release_sub_group, reset_cpu_buffers
    its parameters                 ds_shape, ds_numel, partition_numel, all_gather_coalesced
    all of the optimizers          optimizer (the torch optimizer inside)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor

from vjepa_fast.training.zero.bucketed import BucketedOptimizer
from vjepa_fast.training.zero.shards import Bucket, GroupShard, bucket_each, make_shards

MOMENTS = ("exp_avg", "exp_avg_sq")


class _Synchronous:
    """What an adapter has whose engine does everything within `backward` and `step`."""

    def begin_backward(self, first: bool, last: bool) -> None:
        """Nothing: the engine counts micro-batches."""

    def reduce_gradients(self) -> None:
        """Nothing: the backward pass reduces."""

    def share_weights(self) -> None:
        """Nothing: the step has done so."""

    def wait_for_weights(self) -> None:
        """Nothing: the step has waited."""


class PlainOptimizer(_Synchronous):
    """One process in fp32, at any stage: it steps the parameters themselves, without any copy."""

    sharded = False

    def __init__(self, engine: DeepSpeedEngine) -> None:
        self.torch: torch.optim.Optimizer = engine.optimizer
        groups = [group["params"] for group in self.torch.param_groups]
        sizes = [sum(p.numel() for p in group) for group in groups]
        buckets = [[_one_bucket(group, size)] for group, size in zip(groups, sizes, strict=True)]
        settings = self.torch.param_groups
        self.shards = make_shards(engine.module, settings, groups, groups, buckets, 1, 0)

    def gradients(self) -> list[list[Tensor]]:
        return [[p.grad for p in group["params"]] for group in self.torch.param_groups]

    def copy_masters_to_model(self) -> None:
        """Nothing: the parameters are the masters."""


class Zero12(_Synchronous):
    """Stages 1 and 2, offloaded: each rank steps one flat fp32 partition of each group."""

    sharded = True

    def __init__(self, engine: DeepSpeedEngine) -> None:
        self._zero: DeepSpeedZeroOptimizer = engine.optimizer
        self.torch: torch.optim.Optimizer = self._zero.optimizer
        groups = self._zero.round_robin_bit16_groups
        self._masters = self._zero.single_partition_of_fp32_groups
        pairs = zip(groups, self._masters, strict=True)
        buckets = [[_one_bucket(group, master.numel())] for group, master in pairs]
        self.shards = make_shards(
            engine.module,
            self.torch.param_groups,
            groups,
            [[master] for master in self._masters],
            buckets,
            dist.get_world_size(),
            dist.get_rank(),
        )

    def gradients(self) -> list[list[Tensor]]:
        self._zero._wait_for_offload_copies()  # its own step would only do so later
        return [[master.grad] for master in self._masters]

    def copy_masters_to_model(self) -> None:
        """Cast the masters into the model's parameters on every rank. Collective."""
        self._zero.update_lp_params()


class Zero3(_Synchronous):
    """Stage 3: each rank steps its partition of every parameter, concatenated per group."""

    sharded = True

    def __init__(self, engine: DeepSpeedEngine) -> None:
        self._zero: DeepSpeedZeroOptimizer_Stage3 = engine.optimizer
        self.torch: torch.optim.Optimizer = self._zero.optimizer
        self._zero.step = self._step
        groups, self._masters = self._zero.fp16_groups, self._zero.fp32_partitioned_groups_flat
        buckets = []
        for group, master in zip(groups, self._masters, strict=True):
            sizes = [p.ds_numel for p in group]
            lengths = [p.partition_numel() for p in group]
            if sum(lengths) != master.numel():
                raise RuntimeError(
                    f"stage 3: found {master.numel()} masters, expected {sum(lengths)}"
                )
            buckets.append(bucket_each(sizes, lengths))
        self.shards = make_shards(
            engine.module,
            self.torch.param_groups,
            groups,
            [[master] for master in self._masters],
            buckets,
            dist.get_world_size(),
            dist.get_rank(),
            one_call=True,
        )

    def gradients(self) -> list[list[Tensor]]:
        """Padding included; it is zero."""
        if self._zero.offload_optimizer:
            return [[master.grad] for master in self._masters]
        return [list(self._zero.averaged_gradients[i]) for i in range(len(self._masters))]

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


Optimizer = PlainOptimizer | BucketedOptimizer | Zero12 | Zero3


def adapt(engine: DeepSpeedEngine, stage: int, bf16: bool) -> Optimizer:
    """The adapter of an engine's optimizer; once per engine, since it changes engine and model.

    Args:
        engine: from `make_engine`.
        stage: of ZeRO.
        bf16: whether the model is to run in bf16.

    Raises:
        TypeError: an optimizer class that no adapter is written for.
    """
    optimizer = engine.optimizer
    if isinstance(optimizer, torch.optim.Optimizer):
        engine.enable_backward_allreduce = False
        if dist.get_world_size() == 1 and not bf16:
            return PlainOptimizer(engine)
        dtype = torch.bfloat16 if bf16 else torch.float32
        return BucketedOptimizer(engine.module, optimizer, stage, dtype)
    if isinstance(optimizer, DeepSpeedZeroOptimizer):
        return Zero12(engine)
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        return Zero3(engine)
    raise TypeError(
        f"optimizer: found {type(optimizer).__name__}, expected the torch optimizer (stages 0 to 2 "
        "without offloading), DeepSpeedZeroOptimizer or DeepSpeedZeroOptimizer_Stage3; write an "
        "adapter for it in training/zero/optimizers.py"
    )


def _one_bucket(group: Sequence[Tensor], length: int) -> Bucket:
    """The whole of a flat vector, in slices of `length` elements."""
    return Bucket(range(len(group)), 0, sum(p.numel() for p in group), length, 0)


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
