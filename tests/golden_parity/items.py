"""One compared quantity, and the distance of two tensors."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Item(NamedTuple):
    """A quantity, its largest error and the error allowed."""

    name: str
    error: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether the error is within tolerance; a NaN is not."""
        return self.error <= self.tolerance


def _pair(ours: object, golden: object) -> tuple[torch.Tensor, torch.Tensor]:
    ours = torch.as_tensor(ours, dtype=torch.float64)
    golden = torch.as_tensor(golden, dtype=torch.float64)
    if ours.shape != golden.shape:
        raise ValueError(
            f"found shape {tuple(ours.shape)}, the golden one is {tuple(golden.shape)}"
        )
    return ours.detach(), golden


def largest(ours: object, golden: object) -> float:
    """Largest absolute difference."""
    ours, golden = _pair(ours, golden)
    return (ours - golden).abs().max().item()


def relative(ours: object, golden: object) -> float:
    """Norm of the difference over the norm of the golden value."""
    ours, golden = _pair(ours, golden)
    return ((ours - golden).norm() / golden.norm().clamp(min=1e-30)).item()


def worst(errors: list[float]) -> float:
    """The largest of some errors; NaN if one is (Python's max would drop it)."""
    return torch.tensor(errors, dtype=torch.float64).max().item()
