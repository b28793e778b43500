"""Numbers that are not finite: found on the device, kept out of the weights, counted.

A loss or a gradient norm that is not finite makes the step a bad one: neither AdamW nor the average
touches anything, on any rank, and the step counts as done. The host learns of it when it reads.
(Gradients alone would not tell: from a target encoder full of NaN, PyTorch's own L1 loss has finite
ones.)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from torch import Tensor

from vjepa_fast.training.zero.shards import gather_kept_whole, master_shards, unwrap


@dataclass(frozen=True)
class BadSteps:
    """What a guard has seen since the run began.

    Attributes:
        total: bad steps.
        in_a_row: of them, those that no good step has followed.
        last: the last one's number; -1 if there was none.
        what: what was not finite there: "loss", "grad_norm_encoder", "grad_norm_predictor".
    """

    total: int
    in_a_row: int
    last: int
    what: tuple[str, ...]


class Guard:
    """Watches the steps of an optimiser.

    Args:
        optimizer: DeepSpeed's, around a fused torch optimiser, which leaves weights, moments and
            its step counter alone where `bad` is 1.
        device: of losses and norms.

    Attributes:
        bad: 1.0 where the last step looked at is a bad one, else 0.0; fp32 scalar on the device.
    """

    def __init__(self, optimizer: object, device: torch.device) -> None:
        self.bad = torch.zeros((), device=device)
        masters_on = master_shards(optimizer)[0].masters[0].device
        self._found_inf = self.bad.to(masters_on)  # `bad` itself unless they are offloaded
        unwrap(optimizer).found_inf = self._found_inf  # what GradScaler sets, too
        self._counts = torch.tensor([0, 0, -1], device=device)  # total, in a row, last
        self._flags: Tensor | None = None
        self._names: tuple[str, ...] = ()

    @torch.no_grad()
    def look(self, step: int, loss: Tensor, norms: dict[str, Tensor]) -> None:
        """Judge a step before it is taken. Collective; nothing waits for the device, unless the
        optimiser is offloaded.

        Args:
            step: its number.
            loss: this rank's, scalar.
            norms: gradient norms over all ranks by part, scalars.
        """
        flags = torch.stack([loss.float(), *norms.values()]).isfinite().logical_not().float()
        if dist.get_world_size() > 1:  # a loss is one rank's own
            dist.all_reduce(flags, dist.ReduceOp.MAX)
        if self._flags is None:
            self._names = ("loss", *(f"grad_norm_{part}" for part in norms))
            self._flags = torch.zeros_like(flags)
        self.bad.copy_(flags.amax())
        if self._found_inf is not self.bad:
            self._found_inf.copy_(self.bad)  # host sync
        bad = self.bad != 0
        total, in_a_row, last = self._counts.unbind()
        new = torch.stack([total + 1, in_a_row + 1, torch.full_like(last, step)])
        kept = torch.stack([total, torch.zeros_like(in_a_row), last])
        self._counts = torch.where(bad, new, kept)
        self._flags = torch.where(bad, flags, self._flags)

    def restore(self, total: int, in_a_row: int, last: int) -> None:
        """Go on counting where a guard of before stopped; see `BadSteps`."""
        self._counts = self._counts.new_tensor([total, in_a_row, last])

    def read(self) -> BadSteps:
        """What was seen. Waits for the device."""
        total, in_a_row, last = self._counts.tolist()
        flags = [] if self._flags is None else self._flags.tolist()
        what = tuple(name for name, flag in zip(self._names, flags, strict=True) if flag)
        return BadSteps(total, in_a_row, last, what)


def step_without_waiting(optimizer: object) -> None:
    """Have a BF16_Optimizer or a stage-3 optimiser step without a norm of its own, for which it
    waits at each step; the others are told by their config (`engine.deepspeed_config`)."""
    if isinstance(optimizer, BF16_Optimizer):
        optimizer.step = partial(_step_bf16, optimizer)
    elif isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        optimizer.step = partial(_step_stage_3, optimizer)


def _step_bf16(optimizer: BF16_Optimizer) -> None:
    optimizer.overflow = False
    for master, gradient in zip(
        optimizer.fp32_groups_flat_partition,
        optimizer.fp32_groups_gradient_flat_partition,
        strict=True,
    ):
        master.grad = gradient  # fp32, as `engine.deepspeed_config` has it
    optimizer.optimizer.step()
    optimizer.update_lp_params()
    optimizer.clear_hp_grads()


def _step_stage_3(optimizer: DeepSpeedZeroOptimizer_Stage3) -> None:
    optimizer._pre_step()
    optimizer._partition_all_parameters()
    optimizer.overflow = False
    if not optimizer.offload_optimizer:
        optimizer.zero_grad()
    for group in range(len(optimizer.fp16_groups)):
        optimizer._prepare_sub_group(group, set())
        optimizer._optimizer_step(group)
        optimizer._reassign_or_swap_out_partitioned_parameters(group)
        optimizer._release_sub_group(group, set())
    if optimizer.offload_optimizer:
        optimizer.reset_cpu_buffers()
    gather_kept_whole(optimizer)
