"""Times the GEMMs of one step alone, at their own shapes: narrow GEMMs run at a lower rate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from step.clock import Clock

FIRST_MATRIX = {torch.ops.aten.mm.default: 0, torch.ops.aten.addmm.default: 1}  # its argument
Operand = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]  # sizes, strides


class Recorder(TorchDispatchMode):
    """Counts the GEMMs that run inside it, by operator and operands."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[tuple[Any, tuple[Operand, ...]]] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func in FIRST_MATRIX:
            tensors = [a for a in args if isinstance(a, Tensor)]
            operands = tuple((tuple(t.shape), t.stride(), t.dtype) for t in tensors)
            self.found[func, operands] += 1
        return func(*args, **(kwargs or {}))


def _random_operand(
    sizes: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    extent = 1 + sum((n - 1) * stride for n, stride in zip(sizes, strides, strict=True))
    return torch.randn(extent, device=device).to(dtype).as_strided(sizes, strides)


def gemms_alone(
    step: Callable[[], object], clock: Clock, device: torch.device, repeats: int = 3
) -> dict[str, float]:
    """Record the GEMMs of a call, then time each alone with warm caches.

    Returns:
        number, flops and seconds of all GEMMs of the call, each at its fastest of `repeats`.
    """
    with Recorder() as recorder:
        step()
    flops = seconds = 0.0
    for (func, operands), number in recorder.found.items():
        tensors = [_random_operand(*operand, device) for operand in operands]
        a, b = tensors[FIRST_MATRIX[func] :]
        flops += number * 2 * a.shape[0] * a.shape[1] * b.shape[1]
        times = [clock.time(lambda f=func, t=tensors: f(*t)) for _ in range(repeats + 1)]
        seconds += number * min(times[1:])
    return {"number": recorder.found.total(), "flops": flops, "seconds": seconds}
