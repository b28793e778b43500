"""The timer's parts cover a step, have the right names and cost next to nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch

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


def test_parts_cover_a_real_step() -> None:
    trainer = make_trainer(accumulation=2)

    def slow() -> Iterator[tuple]:
        for step in range(2):
            time.sleep(0.01)
            yield micro_batch(step)

    trainer.step([micro_batch(0), micro_batch(1)])
    trainer.timer.take()
    start = time.perf_counter()
    for _ in range(2):
        trainer.step(slow())
    whole = 1e3 * (time.perf_counter() - start) / 2
    parts = trainer.timer.take()
    assert all(parts[part] > 0 for part in PARTS), parts
    assert 20 < parts["data"] < whole
    assert 0.8 * whole < sum(parts.values()) <= whole


def test_marks_cost_less_than_half_a_percent_of_a_step() -> None:
    trainer, timer = make_trainer(), StepTimer(CPU)
    steps, marks = [], []
    for step in range(5):
        batch = [micro_batch(step)]
        start = time.perf_counter()
        trainer.step(batch)
        middle = time.perf_counter()
        for _ in range(100):
            timer.begin()
            for part in PARTS:
                timer.mark(part)
        steps.append(middle - start)
        marks.append((time.perf_counter() - middle) / 100)
    assert min(marks) < 0.005 * min(steps)


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
