"""The timer's parts cover a step, have the right names, and marks cost next to nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers.trainers import make_trainer, micro_batch
from vjepa_fast.training import timers
from vjepa_fast.training.timers import PARTS, StepTimer

CPU = torch.device("cpu")


class Ticks:
    """A clock that returns the given stamps in order."""

    def __init__(self, *times: float) -> None:
        self.times = iter(times)
        self.freed = 0

    def stamp(self) -> float:
        return next(self.times)

    def seconds(self, start: float, end: float) -> float:
        return end - start

    def free(self, stamps: list[float]) -> None:
        self.freed += len(stamps)


def test_parts_are_means_over_steps_without_the_time_between_them() -> None:
    timer = StepTimer(CPU)
    timer._clock = clock = Ticks(0, 1, 3, 100, 101, 107)
    for _ in range(2):
        timer.begin()
        timer.mark("data")
        timer.mark("target")
    found = timer.take()
    assert found.keys() == set(PARTS)
    assert found["data"] == 1e3 and found["target"] == 4e3
    assert sum(found.values()) == 5e3
    assert clock.freed == 6
    assert timer.take() == {}


def test_marks_that_nobody_takes_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timers, "MAX_MARKS", 5)
    timer = StepTimer(CPU)
    timer._clock = clock = Ticks(0, 1, 2, 10, 13, 15, 20, 23, 25)
    for _ in range(3):
        timer.begin()
        timer.mark("data")
        timer.mark("target")
    # 13 and 15 belong to a step whose beginning was dropped
    assert timer.take()["data"] == 3e3 and clock.freed == 5


class Operations(TorchDispatchMode):
    """Counts tensor operations, also in the backward pass; as a clock, each takes a second."""

    def __init__(self) -> None:
        super().__init__()
        self.count = self.stamps = 0

    def __torch_dispatch__(
        self, op: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        self.count += 1
        return op(*args, **(kwargs or {}))

    def stamp(self) -> int:
        self.stamps += 1
        return self.count

    def seconds(self, start: int, end: int) -> int:
        return end - start

    def free(self, stamps: list[int]) -> None:
        """Nothing to reuse."""


def test_parts_cover_a_real_step() -> None:
    """Every operation of a step is in a part, and the making of a batch is in "data"."""
    trainer = make_trainer(accumulation=2)
    trainer.timer._clock = operations = Operations()

    def slow() -> Iterator[tuple]:
        for step in range(2):
            operations.count += 1000
            yield micro_batch(step)

    with operations:
        for _ in range(2):
            trainer.step(slow())
    parts = trainer.timer.take()
    assert all(parts[part] > 0 for part in PARTS), parts
    assert parts["data"] > 2000e3
    assert sum(parts.values()) == 1e3 * operations.count / 2


def test_marks_are_few_and_need_no_tensor_operation() -> None:
    trainer = make_trainer(accumulation=2)
    trainer.timer._clock = operations = Operations()
    trainer.step(micro_batch(step) for step in range(2))
    assert operations.stamps == 1 + 2 * 6 + 2  # of a step, of its micro-batches, of the update
    with operations:
        timer = StepTimer(CPU)
        timer.begin()
        for part in PARTS:
            timer.mark(part)
    assert operations.count == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: marks are its events")
def test_on_a_gpu_parts_are_the_devices_time() -> None:
    timer = StepTimer(torch.device("cuda"))
    a = torch.randn(4096, 4096, device="cuda")
    torch.cuda.synchronize()
    start = time.perf_counter()
    timer.begin()
    for _ in range(50):
        a @ a
    timer.mark("backward")
    queued = 1e3 * (time.perf_counter() - start)
    torch.cuda.synchronize()
    assert timer.take()["backward"] > queued
