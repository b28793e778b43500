"""Times single calls with cold caches, on a GPU or a CPU."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

# Bytes that are overwritten before a call, and that the device's copy is measured with. On a GPU
# that also has to take longer than launching a backward pass.
FLUSHED = {"cuda": 1 << 30, "cpu": 128 << 20}


class Stopwatch:
    """Time single calls, each after the caches were overwritten: on CUDA by events, on a CPU by the
    process's own time, which leaves out what others do there (so with one thread)."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.buffer = torch.empty(FLUSHED[device.type], dtype=torch.uint8, device=device)

    def __call__(self, call: Callable[[], object]) -> tuple[object, Callable[[], float]]:
        """The call's result and a function that gives its microseconds, once the device is done."""
        self.buffer.zero_()
        if self.cuda:
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            result = call()
            stop.record()
            return result, lambda: 1e3 * start.elapsed_time(stop)
        begin = time.process_time()
        result = call()
        microseconds = 1e6 * (time.process_time() - begin)
        return result, lambda: microseconds

    def copy_bandwidth(self, repeats: int = 20) -> float:
        """GB/s of a large copy, bytes read and written, median."""
        target = torch.empty_like(self.buffer)
        laps = [self(lambda: target.copy_(self.buffer))[1] for _ in range(repeats)]
        self.finish()
        return 2 * target.numel() / 1e3 / float(np.median([lap() for lap in laps[1:]]))

    def finish(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()
