"""Skips and counts steps with a non-finite loss or gradient, without a host sync.

On any rank, a non-finite loss or gradient norm makes the step a skipped one on all ranks: weights,
Adam's state and the EMA stay as they are, and the step counts as done. The host learns of it when
it reads the counts. The loss is checked as well as the gradients, since PyTorch's L1 loss has
finite gradients where the target features are NaN.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from vjepa_fast.training.zero.optimizers import Optimizer


@dataclass(frozen=True)
class SkippedSteps:
    """Counts since the run began.

    Attributes:
        total: skipped steps.
        in_a_row: skipped steps after the last one that was not.
        last: number of the last skipped step; -1 if there was none.
        what: what was not finite there: "loss", "grad_norm_encoder", "grad_norm_predictor".
    """

    total: int
    in_a_row: int
    last: int
    what: tuple[str, ...]


class NonFiniteGuard:
    """Makes an optimizer skip non-finite steps.

    Args:
        optimizer: whose fused torch optimizer leaves weights, moments and step counter as they are
            where `skip` is 1.
        device: device of losses and gradient norms.

    Attributes:
        skip: fp32 scalar on the device: 1.0 if the step that was checked last is to be skipped,
            else 0.0.
    """

    def __init__(self, optimizer: Optimizer, device: torch.device) -> None:
        self.skip = torch.zeros((), device=device)
        masters_on = optimizer.shards[0].masters[0].device
        self._found_inf = self.skip.to(masters_on)  # `skip` itself unless offloaded
        optimizer.torch.found_inf = self._found_inf  # the attribute that torch's GradScaler sets
        self._counts = torch.tensor([0, 0, -1], device=device)  # total, in a row, last
        self._flags: Tensor | None = None
        self._names: tuple[str, ...] = ()

    @torch.no_grad()
    def check(self, step: int, loss: Tensor, norms: dict[str, Tensor]) -> None:
        """Set `skip` before a step is taken. Collective; no host sync unless offloaded.

        Args:
            step: its number.
            loss: loss of this rank, scalar.
            norms: gradient norm over all ranks of each part, scalars.
        """
        flags = torch.stack([loss.float(), *norms.values()]).isfinite().logical_not().float()
        if dist.get_world_size() > 1:  # each rank has its own loss
            dist.all_reduce(flags, dist.ReduceOp.MAX)
        if self._flags is None:
            self._names = ("loss", *(f"grad_norm_{part}" for part in norms))
            self._flags = torch.zeros_like(flags)
        self.skip.copy_(flags.amax())
        if self._found_inf is not self.skip:
            self._found_inf.copy_(self.skip)  # host sync
        skipped = self.skip != 0
        total, in_a_row, last = self._counts.unbind()
        if_skipped = torch.stack([total + 1, in_a_row + 1, torch.full_like(last, step)])
        if_not = torch.stack([total, torch.zeros_like(in_a_row), last])
        self._counts = torch.where(skipped, if_skipped, if_not)
        self._flags = torch.where(skipped, flags, self._flags)

    def restore(self, total: int, in_a_row: int, last: int) -> None:
        """Continue the counts of an earlier process; see `SkippedSteps`."""
        self._counts = self._counts.new_tensor([total, in_a_row, last])

    def counts(self) -> SkippedSteps:
        """The counts so far. Has host syncs."""
        total, in_a_row, last = self._counts.tolist()
        flags = [] if self._flags is None else self._flags.tolist()
        what = tuple(name for name, flag in zip(self._names, flags, strict=True) if flag)
        return SkippedSteps(total, in_a_row, last, what)
