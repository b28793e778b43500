"""How close a result must come: the error of plain PyTorch in the same dtype is the measure.

Processors sum in different orders, with and without fused multiply-adds. Thus a tolerance is either
twice the error that the plain form has on the same processor, or a number of roundings, counted.
"""

import torch
from torch import Tensor

ROUNDING = 2.0**-24
"""Largest relative error of one fp32 operation."""


def error(found: Tensor, exact: Tensor) -> float:
    """Largest deviation from the exact value, over the elements that are not NaN there."""
    deviation = (found.double() - exact.double()).abs()[~exact.isnan()]
    return deviation.max().item() if deviation.numel() else 0.0


def assert_accurate(
    ours: Tensor, torchs: Tensor, exact: Tensor, factor: float = 2.0, atol: float | None = None
) -> None:
    """err(ours) ≤ factor · err(torchs) + atol, NaN exactly where `exact` has it.

    Args:
        ours: what is tested.
        torchs: what plain PyTorch gives in the same dtype.
        exact: what plain PyTorch gives on the same inputs cast to fp32 (to fp64 if they are fp32).
        factor: 2 for values, 3 for gradients.
        atol: for results that PyTorch happens to get exactly. Default: 16 roundings of the largest
            exact value in fp32.
    """
    assert ours.shape == torchs.shape == exact.shape
    assert ours.dtype == torchs.dtype
    assert torch.equal(ours.isnan(), exact.isnan()), "NaN at other positions than expected"
    if atol is None:
        atol = 16 * ROUNDING * error(exact, torch.zeros_like(exact))
    found, allowed = error(ours, exact), factor * error(torchs, exact) + atol
    assert found <= allowed, f"error {found:.3g}, at most {allowed:.3g} allowed"
