"""The equality check of bench/throughput.py: nothing is timed unless both sides train alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from step.trainers import Baseline, Ours

STEPS = 3
# Relative to the baseline's value. AdamW's first step divides each gradient by its own size, also
# gradients that are only rounding error, hence the wide limit for the EMA weights.
LIMITS = {
    "fp32": {"loss": 1e-5, "gradient_norm": 1e-4, "ema_distance": 1e-2},
    "bf16": {"loss": 1e-2, "gradient_norm": 5e-2, "ema_distance": 5e-2},
}


@dataclass(frozen=True)
class Gate:
    """How closely the sides agree.

    Attributes:
        losses: losses of the baseline, step by step.
        largest: the largest relative difference of each item of `LIMITS`.
        errors: a sentence for each difference above its limit.
    """

    losses: list[float]
    largest: dict[str, float]
    errors: list[str]


def _distance(side: Ours | Baseline, start: Sequence[Tensor]) -> float:
    """L2 distance of the EMA weights from those at the start."""
    squares = [(a - s).square().sum() for a, s in zip(side.ema(), start, strict=True)]
    return torch.stack(squares).sum().sqrt().item()


def compare(ours: Ours, baseline: Baseline, clips: Iterator[Tensor], precision: str) -> Gate:
    """Train both sides on the same clips for a few steps."""
    limits, sides = LIMITS[precision], (ours, baseline)
    starts = [[t.clone() for t in side.ema()] for side in sides]
    found: dict[str, list[tuple[str, float, float]]] = {name: [] for name in limits}
    for step in range(STEPS):
        video = next(clips)
        losses = (float(side.step(step, video, side.prepare(step))) for side in sides)
        found["loss"].append((f"loss of step {step}", *losses))
        found["gradient_norm"] += [
            (f"{name}'s gradient norm at step {step}", norm.item(), other.item())
            for name, norm in ours.grad_norms.items()
            if (other := baseline.grad_norms.get(name)) is not None
        ]
    distances = (_distance(side, start) for side, start in zip(sides, starts, strict=True))
    found["ema_distance"].append((f"distance of the EMA weights after {STEPS} steps", *distances))

    largest, errors = {}, []
    for item, limit in limits.items():
        gaps = [abs(own - other) / abs(other or 1.0) for _, own, other in found[item]]
        largest[item] = max(gaps, default=0.0)
        errors += [
            f"{name}: found {own:.7g} for ours and {other:.7g} for the baseline, expected a "
            f"relative difference of at most {limit:g}; nothing is timed, find what they do "
            "differently"
            for (name, own, other), gap in zip(found[item], gaps, strict=True)
            if not gap <= limit  # NaN too
        ]
    return Gate([other for _, _, other in found["loss"]], largest, errors)
