"""The matrix products of one step, timed alone at their own shapes: a large product's rate is more
than narrow ones can reach."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from step.clock import Clock
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

PRODUCTS = {torch.ops.aten.mm.default: 0, torch.ops.aten.addmm.default: 1}  # first matrix's place
Shape = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]  # sizes, strides


class Recorder(TorchDispatchMode):
    """Counts the products that run inside it, by operator and operands."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[tuple[Any, tuple[Shape, ...]]] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func in PRODUCTS:
            tensors = [a for a in args if isinstance(a, Tensor)]
            shapes = tuple((tuple(t.shape), t.stride(), t.dtype) for t in tensors)
            self.found[func, shapes] += 1
        return func(*args, **(kwargs or {}))


def _operand(
    sizes: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    extent = 1 + sum((n - 1) * stride for n, stride in zip(sizes, strides, strict=True))
    return torch.randn(extent, device=device).to(dtype).as_strided(sizes, strides)


def products_alone(
    step: Callable[[], object], clock: Clock, device: torch.device, repeats: int = 3
) -> dict[str, float]:
    """Record the products of a call and run each alone, with warm caches.

    Returns:
        number, flops and seconds of the call's products, each at its fastest of `repeats`.
    """
    with Recorder() as recorder:
        step()
    flops = seconds = 0.0
    for (func, shapes), count in recorder.found.items():
        operands = [_operand(*shape, device) for shape in shapes]
        a, b = operands[PRODUCTS[func] :]
        flops += count * 2 * a.shape[0] * a.shape[1] * b.shape[1]
        laps = [clock.time(lambda f=func, o=operands: f(*o)) for _ in range(repeats + 1)]
        seconds += count * min(laps[1:])
    return {"number": recorder.found.total(), "flops": flops, "seconds": seconds}
