"""Times the parts of a training step and the wait for data, without a host sync."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch

Item = TypeVar("Item")
MAX_MARKS = 1 << 14  # kept if nobody takes them
PARTS = ("data", "target", "context", "predictor", "backward", "optimizer", "ema")
FINETUNE_PARTS = ("data", "forward", "backward", "optimizer")
ALL_PARTS = (*PARTS, "forward")


class TimedIterator(Iterator[Item]):
    """Yields an iterator's items and sums the seconds spent waiting for them."""

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
    """Host time, for a CPU, where work is done when the call returns."""

    def stamp(self) -> float:
        return time.perf_counter()

    def seconds(self, start: float, end: float) -> float:
        return end - start

    def free(self, stamps: list[float]) -> None:
        """Nothing to reuse."""


class _CudaClock:
    """Events on the device's current stream, read once the device has passed them."""

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


class StepTimer:
    """Time of each of a step's parts, summed over steps.

    Parts follow each other without a gap: `begin` starts a step, and `mark` names the part that has
    just ended. On a GPU a mark is an event in the stream, so a part is the device's time for it,
    "data" is how long the device was idle before its inputs arrived, and there is no host sync
    before `take`.

    Args:
        device: the device that runs the step.
        parts: names of the parts, in the order of `take`.
    """

    def __init__(self, device: torch.device, parts: Sequence[str] = PARTS) -> None:
        self._parts = parts
        self._clock = _CudaClock() if device.type == "cuda" else _HostClock()
        self._marks: deque[tuple[str | None, object]] = deque(maxlen=MAX_MARKS)

    def begin(self) -> None:
        """A step begins."""
        self._marks.append((None, self._clock.stamp()))

    def mark(self, part: str) -> None:
        """A part of the step, one of `parts`, has ended."""
        self._marks.append((part, self._clock.stamp()))

    def take(self) -> dict[str, float]:
        """Mean milliseconds per step of each part since the last call; empty without a step.

        The device must have finished these steps, as it has once one of their results was read.
        """
        total, steps, last = dict.fromkeys(self._parts, 0.0), 0, None
        for part, stamp in self._marks:
            if part is None:
                steps += 1
            elif steps:  # else the beginning of this step was dropped
                total[part] += self._clock.seconds(last, stamp)
            last = stamp
        self._clock.free([stamp for _, stamp in self._marks])
        self._marks.clear()
        return {part: 1e3 * seconds / steps for part, seconds in total.items()} if steps else {}
