"""Clocks for bench/throughput.py: seconds of steps and of their parts, rates of the device, memory
that a call takes."""

from __future__ import annotations

import ctypes
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

PRODUCT = {"cuda": 8192, "cpu": 2048}  # rows and columns of the large matrix product
COPIED = {"cuda": 1 << 30, "cpu": 128 << 20}  # bytes
# Dense bf16 TFLOP/s by NVIDIA's data sheets; the first name that fits counts.
DATASHEET = {"H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "H200": 989, "A100": 312}


class Clock:
    """Seconds, once the device has done its work. A call gives the time as it is.

    One CPU thread that decodes nothing is timed by the process's own time, which leaves out what
    others do on the machine; all else by the wall clock.
    """

    def __init__(self, device: torch.device, decodes: bool) -> None:
        self.cuda = device.type == "cuda"
        alone = not self.cuda and not decodes and torch.get_num_threads() == 1
        self.name = "process time, one thread" if alone else "wall"
        self._now = time.process_time if alone else time.perf_counter

    def __call__(self) -> float:
        if self.cuda:
            torch.cuda.synchronize()
        return self._now()

    def time(self, call: Callable[[], object]) -> float:
        """Seconds of a call."""
        start = self()
        call()
        return self() - start


class Laps:
    """Adds up the seconds of a step's parts, by name; `mark` says which part has just ended."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.steps: list[dict[str, float]] = []

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around one step, whose parts follow each other without a gap."""
        self.steps.append({})
        self._last = self.clock()
        yield

    def mark(self, part: str) -> None:
        """The part that lasted since the last mark has ended; the clock waits for the device."""
        now = self.clock()
        self.steps[-1][part] = self.steps[-1].get(part, 0.0) + now - self._last
        self._last = self.clock()


class Rates:
    """What the device does at best: a large matrix product in the step's dtype, a large copy."""

    def __init__(self, device: torch.device, dtype: torch.dtype, clock: Clock) -> None:
        n = PRODUCT[device.type]
        self._a, self._b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        self._out = torch.empty_like(self._a)
        self._flops = 2 * n**3
        self._source = torch.zeros(COPIED[device.type], dtype=torch.uint8, device=device)
        self._copy = torch.empty_like(self._source)
        self._clock = clock
        self.gemm(), self.copy()  # warm

    def gemm(self) -> float:
        """FLOP/s of one product."""
        return self._flops / self._clock.time(lambda: torch.mm(self._a, self._b, out=self._out))

    def copy(self) -> float:
        """Bytes read and written per second by one copy."""
        seconds = self._clock.time(lambda: self._copy.copy_(self._source))
        return 2 * self._source.numel() / seconds


def datasheet_flops(device_name: str) -> float | None:
    """Dense bf16 FLOP/s that the vendor states for a GPU, None where we don't know."""
    for name, teraflops in DATASHEET.items():
        if all(word in device_name for word in name.split()):
            return teraflops * 1e12
    return None


def peak_memory(call: Callable[[], object], device: torch.device) -> int | None:
    """Bytes that a call takes at most beside what is there before it; None where unknown.

    On a GPU as its allocator counts, else the process's resident memory, by Linux.
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def kilobytes(name: str) -> int:
        return int(re.search(rf"{name}:\s+(\d+) kB", status.read_text())[1])

    try:
        ctypes.CDLL(None).malloc_trim(0)  # freed memory that glibc keeps would hide the call's
        reset.write_text("5")
        before = kilobytes("VmRSS")
    except (OSError, AttributeError):  # not Linux with glibc, or a sandbox
        return None
    call()
    return (kilobytes("VmHWM") - before) * 1024
