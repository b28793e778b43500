"""Measures a step: its time, the time of its parts, its memory, and the device's peak rates."""

from __future__ import annotations

import ctypes
import re
import time
from collections.abc import Callable
from pathlib import Path

import torch

GEMM_SIZE = {"cuda": 8192, "cpu": 2048}  # rows and columns of the large GEMM
COPY_BYTES = {"cuda": 1 << 30, "cpu": 128 << 20}
# Dense bf16 TFLOP/s by NVIDIA's data sheets; the first name that fits counts.
DATASHEET = {"H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "H200": 989, "A100": 312}


class Clock:
    """Reads the time in seconds after the device has finished its work (a host sync on a GPU).

    One CPU thread that decodes nothing is timed by process time, which excludes other processes on
    the machine; everything else by wall time.
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

    def time_parts(self, call: Callable[[Callable[[str], None]], object]) -> dict[str, float]:
        """Seconds of each part of a call, which passes a part's name to its argument as it ends.

        A part that ends several times is summed.
        """
        seconds: dict[str, float] = {}
        last = self()

        def mark(part: str) -> None:
            nonlocal last
            now = self()
            seconds[part] = seconds.get(part, 0.0) + now - last
            last = self()

        call(mark)
        return seconds


class Rates:
    """The device's peak rates: a large GEMM in the step's dtype, a large copy."""

    def __init__(self, device: torch.device, dtype: torch.dtype, clock: Clock) -> None:
        n = GEMM_SIZE[device.type]
        self._a, self._b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        self._out = torch.empty_like(self._a)
        self._flops = 2 * n**3
        self._source = torch.zeros(COPY_BYTES[device.type], dtype=torch.uint8, device=device)
        self._copy = torch.empty_like(self._source)
        self._clock = clock
        self.gemm(), self.copy()  # warm-up

    def gemm(self) -> float:
        """FLOP/s of one GEMM."""
        return self._flops / self._clock.time(lambda: torch.mm(self._a, self._b, out=self._out))

    def copy(self) -> float:
        """Bytes read and written per second by one copy."""
        seconds = self._clock.time(lambda: self._copy.copy_(self._source))
        return 2 * self._source.numel() / seconds


def datasheet_flops(device_name: str) -> float | None:
    """Dense bf16 FLOP/s that the vendor states for a GPU; None for a GPU not in `DATASHEET`."""
    for name, teraflops in DATASHEET.items():
        if all(word in device_name for word in name.split()):
            return teraflops * 1e12
    return None


def peak_memory(call: Callable[[], object], device: torch.device) -> int | None:
    """Peak bytes of a call beyond what was allocated before it; None where unknown.

    On a GPU as its allocator counts, else the process's resident memory as Linux counts.
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
        ctypes.CDLL(None).malloc_trim(0)  # the call would reuse freed memory that glibc keeps
        reset.write_text("5")
        before = kilobytes("VmRSS")
    except (OSError, AttributeError):  # not Linux with glibc, or a sandbox
        return None
    call()
    return (kilobytes("VmHWM") - before) * 1024
