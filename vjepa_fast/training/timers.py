"""Where a step's time goes: the wait for data, and each part of the step."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from typing import TypeVar

import torch

Item = TypeVar("Item")
MOST_MARKS = 1 << 14  # that are kept if nobody takes them
PARTS = ("data", "target", "context", "predictor", "backward", "optimizer", "ema")


class Waiting(Iterator[Item]):
    """Hands an iterator's items on and adds up the seconds spent waiting for them."""

    def __init__(self, items: Iterator[Item]) -> None:
        self._items = items
        self._seconds = 0.0

    def __next__(self) -> Item:
        start = time.perf_counter()
        try:
            return next(self._items)
        finally:
            self._seconds += time.perf_counter() - start

    def take(self) -> float:
        """Seconds waited since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds


class _HostClock:
    """Stamps of the host, which on a CPU does the work itself."""

    def stamp(self) -> float:
        return time.perf_counter()

    def seconds(self, start: float, end: float) -> float:
        return end - start

    def free(self, stamps: list[float]) -> None:
        """Nothing to keep."""


class _CudaClock:
    """Stamps on the device's current stream. They are read once the device has passed them."""

    def __init__(self) -> None:
        self._spare: list[torch.cuda.Event] = []

    def stamp(self) -> torch.cuda.Event:
        event = self._spare.pop() if self._spare else torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        return start.elapsed_time(end) / 1e3

    def free(self, stamps: list[torch.cuda.Event]) -> None:
        self._spare += stamps


class Laps:
    """Seconds of a step's `PARTS`, added up over steps.

    Parts follow each other without a gap: `begin` starts a step, `mark` says which part has just
    ended. On a GPU a mark is an event in the stream, so a part is the device's time for it, "data"
    is how long the device stood idle before its inputs were there, and nothing waits before `take`.
    """

    def __init__(self, device: torch.device) -> None:
        self._clock = _CudaClock() if device.type == "cuda" else _HostClock()
        self._marks: deque[tuple[str | None, object]] = deque(maxlen=MOST_MARKS)

    def begin(self) -> None:
        """A step begins."""
        self._marks.append((None, self._clock.stamp()))

    def mark(self, part: str) -> None:
        """A part of the step, one of `PARTS`, has ended."""
        self._marks.append((part, self._clock.stamp()))

    def take(self) -> dict[str, float]:
        """Mean milliseconds a step of each part since the last call; empty without a step.

        The device must have done the steps' work, as it has once a number of theirs was read.
        """
        total, steps, last = dict.fromkeys(PARTS, 0.0), 0, None
        for part, stamp in self._marks:
            if part is None:
                steps += 1
            elif steps:  # of a step whose beginning is still there
                total[part] += self._clock.seconds(last, stamp)
            last = stamp
        self._clock.free([stamp for _, stamp in self._marks])
        self._marks.clear()
        return {part: 1e3 * seconds / steps for part, seconds in total.items()} if steps else {}
