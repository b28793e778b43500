"""Learning rate, weight decay and EMA momentum as pure functions of the step.

So resuming needs no replay. All three run towards a horizon that lies beyond the last step (1.25
times the steps in the paper's recipes): a run ends before its cosines and its momentum line do. The
published trainer cuts a fractional horizon to a whole step for the cosines but not for the momentum
line; the same holds here.
"""

import math
from dataclasses import dataclass


def _cosine(start: float, end: float, progress: float) -> float:
    """The half cosine from `start` (progress 0) to `end` (progress 1 and beyond)."""
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))


def learning_rate(
    step: int, *, warmup_steps: int, horizon: float, start_lr: float, lr: float, final_lr: float
) -> float:
    """The learning rate of step 0, 1, …: linear from `start_lr` to `lr`, then cosine to `final_lr`.

    The value is the schedule's at `step + 1`, so step 0 is already one step into the warm-up and
    step `warmup_steps - 1` has exactly `lr`.
    """
    position = step + 1
    if position < warmup_steps:
        return start_lr + (lr - start_lr) * position / warmup_steps
    span = max(1, int(horizon) - warmup_steps)
    return _cosine(lr, final_lr, (position - warmup_steps) / span)


def weight_decay(step: int, *, horizon: float, start: float, final: float) -> float:
    """The weight decay of step 0, 1, …: a cosine from `start` to `final`, taken at `step + 1`."""
    return _cosine(start, final, (step + 1) / max(1, int(horizon)))


def momentum(step: int, *, horizon: float, start: float, final: float) -> float:
    """The teacher's momentum after step 0, 1, …: the line from `start` to `final` at `step`."""
    return start + (final - start) * min(step / horizon, 1.0)


@dataclass(frozen=True)
class StepValues:
    """What one optimiser step uses."""

    lr: float
    weight_decay: float
    momentum: float


@dataclass(frozen=True)
class Schedules:
    """The three schedules of a run, in plain numbers.

    `horizon` is the step towards which they run, usually `stretch * steps`; it need not be whole.
    """

    warmup_steps: int
    horizon: float
    start_lr: float
    lr: float
    final_lr: float
    weight_decay: float
    final_weight_decay: float
    momentum: tuple[float, float]

    def at(self, step: int) -> StepValues:
        """The values of step 0, 1, …"""
        return StepValues(
            lr=learning_rate(
                step,
                warmup_steps=self.warmup_steps,
                horizon=self.horizon,
                start_lr=self.start_lr,
                lr=self.lr,
                final_lr=self.final_lr,
            ),
            weight_decay=weight_decay(
                step, horizon=self.horizon, start=self.weight_decay, final=self.final_weight_decay
            ),
            momentum=momentum(
                step, horizon=self.horizon, start=self.momentum[0], final=self.momentum[1]
            ),
        )
