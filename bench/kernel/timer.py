"""Times single calls with cold caches, on a GPU or a CPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

# Bytes overwritten before each call, and copied to measure the device's bandwidth.
FLUSHED = {"cuda": 1 << 30, "cpu": 128 << 20}
SLEEP = 1 << 24  # cycles, to measure how long a cycle takes


@dataclass(frozen=True)
class CallTime:
    """The time of one call.

    Attributes:
        host: microseconds until the call returned; on CUDA, the time to launch its kernels.
        read: returns the microseconds of the work; on CUDA, only after the device has finished.
    """

    host: float
    read: Callable[[], float]


class CallTimer:
    """Times single calls, each after the caches were overwritten.

    On CUDA by events; on a CPU by process time, which excludes other processes on the machine (so
    use one thread).
    """

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.name = "CUDA events" if self.cuda else "process time, one thread"
        self.buffer = torch.empty(FLUSHED[device.type], dtype=torch.uint8, device=device)
        self.cycles = 0.0  # device cycles per microsecond
        if self.cuda:
            _, first = self._between_events(lambda: torch.cuda._sleep(SLEEP))
            _, second = self._between_events(lambda: torch.cuda._sleep(SLEEP))
            self.finish()
            self.cycles = SLEEP / min(first.read(), second.read())

    def __call__(self, call: Callable[[], object], ahead: float = 0.0) -> tuple[object, CallTime]:
        """The call's result and its time.

        Args:
            ahead: microseconds for which a CUDA device is kept busy before the call. If the device
                idled before the host has launched everything, the host would be timed.
        """
        self.buffer.zero_()
        if self.cuda:
            if ahead:
                torch.cuda._sleep(int(ahead * self.cycles))
            return self._between_events(call)
        begin, own = time.perf_counter(), time.process_time()
        result = call()
        microseconds = 1e6 * (time.process_time() - own)
        return result, CallTime(1e6 * (time.perf_counter() - begin), lambda: microseconds)

    def _between_events(self, call: Callable[[], object]) -> tuple[object, CallTime]:
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        begin = time.perf_counter()
        result = call()
        host = 1e6 * (time.perf_counter() - begin)
        stop.record()
        return result, CallTime(host, lambda: 1e3 * start.elapsed_time(stop))

    def copy_bandwidth(self, repeats: int = 20) -> float:
        """GB/s of a large copy, bytes read and written; median."""
        target = torch.empty_like(self.buffer)
        times = [self(lambda: target.copy_(self.buffer))[1] for _ in range(repeats)]
        self.finish()
        return 2 * target.numel() / 1e3 / float(np.median([one.read() for one in times[1:]]))

    def finish(self) -> None:
        """Wait for the device, so that times can be read."""
        if self.cuda:
            torch.cuda.synchronize()
