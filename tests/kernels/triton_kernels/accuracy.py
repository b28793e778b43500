"""How close a kernel must come: PyTorch's own error in the same dtype is the measure."""

import torch
from torch import Tensor


def error(found: Tensor, exact: Tensor) -> float:
    """Largest deviation from the exact value, over the elements that are not NaN there."""
    deviation = (found.double() - exact.double()).abs()[~exact.isnan()]
    return deviation.max().item() if deviation.numel() else 0.0


def assert_accurate(
    ours: Tensor, torchs: Tensor, exact: Tensor, factor: float = 2.0, atol: float = 1e-6
) -> None:
    """err(ours) ≤ factor · err(torchs) + atol, NaN exactly where `exact` has it.

    Args:
        ours: what the kernel gave.
        torchs: what plain PyTorch gives in the same dtype.
        exact: what plain PyTorch gives on the same inputs cast to fp32 (to fp64 if they are fp32).
        factor: 2 for values, 3 for gradients.
        atol: for results that PyTorch happens to get exactly.
    """
    assert ours.shape == torchs.shape == exact.shape
    assert ours.dtype == torchs.dtype
    assert torch.equal(ours.isnan(), exact.isnan()), "NaN at other positions than expected"
    found, allowed = error(ours, exact), factor * error(torchs, exact) + atol
    assert found <= allowed, f"error {found:.3g}, at most {allowed:.3g} allowed"
