"""Learning rate, weight decay and EMA momentum as pure functions of the step.

So resuming needs no replay. All three run towards a horizon, which lies beyond the last step in the
first generation's recipes (1.25 times the steps), so that a run ends before they do. The published
trainer truncates a fractional horizon to a whole step for learning rate and weight decay but not
for the momentum; so do we. Weight decay and momentum with equal ends are constant, exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from vjepa_fast.config import Config


@dataclass(frozen=True)
class Schedules:
    """The three schedules of a run; steps count from 0.

    Attributes:
        warmup_steps: steps of the linear warm-up of the learning rate.
        horizon: step at which all three reach their end, usually stretch · steps; may be
            fractional.
        start_lr, peak_lr, final_lr: at the start and the end of the warm-up, and at the horizon.
        start_weight_decay, final_weight_decay: at the start and at the horizon.
        start_momentum, final_momentum: EMA momentum at the start and at the horizon.
        lr_schedule: learning rate after the warm-up: half a cosine or a linear decay from `peak_lr`
            to `final_lr`, or constantly `peak_lr`.
    """

    warmup_steps: int
    horizon: float
    start_lr: float
    peak_lr: float
    final_lr: float
    start_weight_decay: float
    final_weight_decay: float
    start_momentum: float
    final_momentum: float
    lr_schedule: Literal["cosine", "constant", "linear"] = "cosine"

    def lr(self, step: int) -> float:
        """Linear from `start_lr` to `peak_lr`, then as `lr_schedule` says.

        Taken at `step + 1`: step 0 is one step into the warm-up, and step `warmup_steps - 1` has
        `peak_lr` exactly.
        """
        position = step + 1
        if position < self.warmup_steps:
            return self.start_lr + (self.peak_lr - self.start_lr) * position / self.warmup_steps
        span = max(1, int(self.horizon) - self.warmup_steps)
        progress = (position - self.warmup_steps) / span
        if self.lr_schedule == "cosine":
            return _cosine(self.peak_lr, self.final_lr, progress)
        if self.lr_schedule == "linear":
            return _line(self.peak_lr, self.final_lr, progress)
        return self.peak_lr

    def weight_decay(self, step: int) -> float:
        """A cosine, taken at `step + 1`."""
        progress = (step + 1) / max(1, int(self.horizon))
        return _cosine(self.start_weight_decay, self.final_weight_decay, progress)

    def momentum(self, step: int) -> float:
        """The momentum of the EMA update after `step`: linear, taken at `step`."""
        progress = min(step / self.horizon, 1.0)
        return self.start_momentum + (self.final_momentum - self.start_momentum) * progress


def make_schedules(config: Config) -> Schedules:
    """The schedules that a config asks for."""
    optim, momentum = config.optim, config.teacher.momentum
    return Schedules(
        warmup_steps=optim.warmup_steps,
        horizon=optim.schedule_stretch * optim.steps,
        start_lr=optim.start_lr,
        peak_lr=optim.lr,
        final_lr=optim.final_lr,
        start_weight_decay=optim.weight_decay,
        final_weight_decay=optim.final_weight_decay,
        start_momentum=momentum[0],
        final_momentum=momentum[1],
        lr_schedule=optim.lr_schedule,
    )


def _cosine(start: float, end: float, progress: float) -> float:
    """Half a cosine from `start` (progress 0) to `end` (progress 1 and beyond)."""
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))


def _line(start: float, end: float, progress: float) -> float:
    """Linear from `start` (progress 0) to `end` (progress 1 and beyond), exact at both."""
    progress = min(max(progress, 0.0), 1.0)
    return start * (1.0 - progress) + end * progress
