"""Times single calls with cold caches, on a GPU or a CPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

# Bytes that are overwritten before a call, and that the device's copy is measured with.
FLUSHED = {"cuda": 1 << 30, "cpu": 128 << 20}
SLEEP = 1 << 24  # cycles that tell how long one takes


@dataclass(frozen=True)
class Lap:
    """What a call took.

    Attributes:
        host: microseconds until the call returned: on CUDA, to launch what it does.
        read: gives its microseconds, on CUDA once the device is done.
    """

    host: float
    read: Callable[[], float]


class Stopwatch:
    """Time single calls, each after the caches were overwritten: on CUDA by events, on a CPU by the
    process's own time, which leaves out what others do there (so with one thread)."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.buffer = torch.empty(FLUSHED[device.type], dtype=torch.uint8, device=device)
        self.cycles = 0.0  # of the device, a microsecond
        if self.cuda:
            _, first = self._between_events(lambda: torch.cuda._sleep(SLEEP))
            _, second = self._between_events(lambda: torch.cuda._sleep(SLEEP))
            self.finish()
            self.cycles = SLEEP / min(first.read(), second.read())

    def __call__(self, call: Callable[[], object], ahead: float = 0.0) -> tuple[object, Lap]:
        """The call's result, and what it took.

        Args:
            ahead: microseconds that a CUDA device is kept busy for before the call, at least. Where
                it is idle before the host has launched everything, what is timed is the host.
        """
        self.buffer.zero_()
        if self.cuda:
            if ahead:
                torch.cuda._sleep(int(ahead * self.cycles))
            return self._between_events(call)
        begin, own = time.perf_counter(), time.process_time()
        result = call()
        microseconds = 1e6 * (time.process_time() - own)
        return result, Lap(1e6 * (time.perf_counter() - begin), lambda: microseconds)

    def _between_events(self, call: Callable[[], object]) -> tuple[object, Lap]:
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        begin = time.perf_counter()
        result = call()
        host = 1e6 * (time.perf_counter() - begin)
        stop.record()
        return result, Lap(host, lambda: 1e3 * start.elapsed_time(stop))

    def copy_bandwidth(self, repeats: int = 20) -> float:
        """GB/s of a large copy, bytes read and written, median."""
        target = torch.empty_like(self.buffer)
        laps = [self(lambda: target.copy_(self.buffer))[1] for _ in range(repeats)]
        self.finish()
        return 2 * target.numel() / 1e3 / float(np.median([lap.read() for lap in laps[1:]]))

    def finish(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()
