"""Exponential moving average of parameters, in fp32."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vjepa_fast.kernels.checks import require


@torch.no_grad()
def ema_update_reference_(
    teacher: Sequence[Tensor],
    student: Sequence[Tensor],
    momentum: float,
    low_precision_copy: Sequence[Tensor] | None,
) -> None:
    """The specification of `ema_update_`, in plain PyTorch."""
    torch._foreach_lerp_(list(teacher), [s.float() for s in student], 1.0 - momentum)
    if low_precision_copy is not None:
        torch._foreach_copy_(list(low_precision_copy), list(teacher))


def ema_update_(
    teacher: Sequence[Tensor],
    student: Sequence[Tensor],
    momentum: float,
    low_precision_copy: Sequence[Tensor] | None = None,
) -> None:
    """teacher ← momentum · teacher + (1 - momentum) · student, in place (paper, section 3.1).

    Args:
        teacher: fp32 tensors.
        student: tensors of the same shapes, any floating dtype.
        momentum: in 0 … 1.
        low_precision_copy: tensors of the same shapes that receive the new teacher, cast.

    Raises:
        ValueError: lists or shapes that differ, a momentum outside 0 … 1, a teacher not in fp32.
    """
    require(0.0 <= momentum <= 1.0, f"momentum: found {momentum}, expected 0 to 1")
    require(
        len(teacher) == len(student),
        f"teacher, student: found {len(teacher)} and {len(student)} tensors, expected as many",
    )
    for i, (t, s) in enumerate(zip(teacher, student, strict=True)):
        require(
            t.shape == s.shape,
            f"teacher[{i}], student[{i}]: found shapes {tuple(t.shape)} and {tuple(s.shape)}, "
            "expected equal shapes",
        )
        require(
            t.dtype == torch.float32,
            f"teacher[{i}]: found dtype {t.dtype}, expected float32; in lower precision an update "
            "at a momentum near 1 is less than half an ulp and the average never moves (keep fp32 "
            "and pass low_precision_copy)",
        )
    if low_precision_copy is not None:
        found = [tuple(c.shape) for c in low_precision_copy]
        expected = [tuple(t.shape) for t in teacher]
        require(
            found == expected,
            f"low_precision_copy: found shapes {found}, expected the teacher's {expected}",
        )
    if not teacher:  # PyTorch's list functions refuse an empty list
        return
    ema_update_reference_(teacher, student, momentum, low_precision_copy)
