"""The equality check of bench/throughput.py: nothing is timed unless both sides train alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from step.trainers import Baseline, Ours

STEPS = 3
# Relative errors that rounding may cause. In fp32 twice the baseline's own error is added, since
# AdamW amplifies rounding from step to step, by a factor that differs between processors.
# Loss: 32 roundings, of which a mean over all elements has one or two.
# Gradient: four roundings of an element, 2^-22, turn the signs of at most that share of the L1
# loss's differences, and k turned signs of N are 2 sqrt(k / N) of the gradient.
# EMA: AdamW moves weights whose gradient is zero but for rounding (key biases, one of 12 times the
# width in a block: 0.4 % at width 24) by whole steps.
# bf16: five roundings of 2^-9 in the loss; far below 2 sqrt(5 * 2^-9) in the gradient.
LIMITS = {
    "fp32": {"loss": 2**-19, "gradient_norm": 2**-10, "ema_distance": 1e-2},
    "bf16": {"loss": 1e-2, "gradient_norm": 5e-2, "ema_distance": 5e-2},
}


@dataclass(frozen=True)
class Gate:
    """How closely the sides agree.

    Attributes:
        losses: losses of the baseline, step by step.
        largest: our largest relative error in each item of `LIMITS`.
        errors: a sentence for each difference above its limit.
    """

    losses: list[float]
    largest: dict[str, float]
    errors: list[str]


def _distance(side: Ours | Baseline, start: Sequence[Tensor]) -> float:
    """L2 distance of the EMA weights from those at the start."""
    squares = [(a - s).square().sum() for a, s in zip(side.ema(), start, strict=True)]
    return torch.stack(squares).sum().sqrt().item()


def compare(
    ours: Ours,
    baseline: Baseline,
    clips: Iterator[Tensor],
    precision: str,
    reference: Baseline | None = None,
) -> Gate:
    """Train both sides on the same clips for a few steps.

    Args:
        reference: the baseline in float64. Both sides are compared with it, and ours may have the
            limit and twice the largest error that the baseline has in the same item. None: ours is
            compared with the baseline.
    """
    limits = LIMITS[precision]
    exact = "the baseline" if reference is None else "the baseline in float64"
    sides = (ours, baseline) if reference is None else (ours, baseline, reference)
    starts = [[t.clone() for t in side.ema()] for side in sides]
    found: dict[str, list[tuple[str, list[float]]]] = {name: [] for name in limits}
    for side in sides[1:]:
        side.trainer.wants_grad_norms = True
    for step in range(STEPS):
        video = next(clips)
        losses = [float(side.step(step, video, side.prepare(step))) for side in sides]
        found["loss"].append((f"loss of step {step}", losses))
        found["gradient_norm"] += [
            (f"{name}'s gradient norm at step {step}", [s.grad_norms[name].item() for s in sides])
            for name in ours.grad_norms
        ]
    for side in sides[1:]:
        side.trainer.wants_grad_norms = False
    distances = [_distance(side, start) for side, start in zip(sides, starts, strict=True)]
    found["ema_distance"].append((f"distance of the EMA weights after {STEPS} steps", distances))

    largest, errors = {}, []
    for item, limit in limits.items():
        ours_off = [_relative_error(values[0], values[-1]) for _, values in found[item]]
        baseline_off = [_relative_error(values[1], values[-1]) for _, values in found[item]]
        allowed = limit + 2 * max(baseline_off)
        largest[item] = max(ours_off)
        errors += [
            f"{name}: found {values[0]:.7g} for ours and {values[-1]:.7g} for {exact}, expected a "
            f"relative difference of at most {allowed:g}; nothing is timed, find what they do "
            "differently"
            for (name, values), error in zip(found[item], ours_off, strict=True)
            if not error <= allowed  # NaN too
        ]
    return Gate([values[1] for _, values in found["loss"]], largest, errors)


def _relative_error(found: float, exact: float) -> float:
    return abs(found - exact) / abs(exact or 1.0)
