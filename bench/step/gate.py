"""The gate of bench/throughput.py: nothing is timed unless both sides train alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from step.sides import Ours, Plain
from torch import Tensor

STEPS = 3
# Of the baseline's value. AdamW's first step divides gradients by their own size, also those that
# are nothing but rounding.
LIMITS = {
    "fp32": {"loss": 1e-5, "gradient norm": 1e-4, "teacher's way": 1e-2},
    "bf16": {"loss": 1e-2, "gradient norm": 5e-2, "teacher's way": 5e-2},
}


def _way(side: Ours | Plain, start: Sequence[Tensor]) -> float:
    """How far the target encoder's weights have moved."""
    squares = [(a - s).square().sum() for a, s in zip(side.averages(), start, strict=True)]
    return torch.stack(squares).sum().sqrt().item()


def differences(
    ours: Ours, plain: Plain, clips: Iterator[Tensor], precision: str
) -> tuple[list[float], dict[str, float], list[str]]:
    """Train both sides on the same clips for a few steps.

    Returns:
        the baseline's losses, the largest relative difference of each item, and a sentence for each
        difference beyond its limit.
    """
    limits, starts = LIMITS[precision], [[t.clone() for t in s.averages()] for s in (ours, plain)]
    found: dict[str, list[tuple[str, float, float]]] = {name: [] for name in limits}
    for number in range(STEPS):
        video = next(clips)
        own, other = (
            float(side.step(number, video, side.prepare(number))) for side in (ours, plain)
        )
        found["loss"].append((f"loss of step {number}", own, other))
        found["gradient norm"] += [
            (f"{name}'s gradient norm at step {number}", norm.item(), plain.grad_norms[name].item())
            for name, norm in ours.grad_norms.items()
            if name in plain.grad_norms
        ]
    ways = (_way(side, start) for side, start in zip((ours, plain), starts, strict=True))
    found["teacher's way"].append((f"way of the teacher's weights in {STEPS} steps", *ways))

    largest, sentences = {}, []
    for item, limit in limits.items():
        gaps = [abs(own - other) / abs(other or 1.0) for _, own, other in found[item]]
        largest[item] = max(gaps, default=0.0)
        sentences += [
            f"{name}: found {own:.7g} for ours and {other:.7g} for the baseline, expected them to "
            f"agree to {limit:g}; nothing is timed, look for what they do differently"
            for (name, own, other), gap in zip(found[item], gaps, strict=True)
            if not gap <= limit  # NaN too
        ]
    return [other for _, _, other in found["loss"]], largest, sentences
