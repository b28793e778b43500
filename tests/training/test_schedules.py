"""Schedules against the published trainer's numbers, and their properties at the joints."""

import json

import numpy as np
import pytest

from tests.helpers.paths import GOLDEN
from vjepa_fast.training.schedules import Schedules


def _recipe(name: str) -> tuple[Schedules, list[list[float]]]:
    golden = json.loads((GOLDEN / "schedules.json").read_text())[name]
    steps = golden["iterations_per_epoch"] * golden["epochs"]
    schedules = Schedules(
        warmup_steps=golden["iterations_per_epoch"] * golden["warmup_epochs"],
        horizon=golden["ipe_scale"] * steps,
        start_lr=golden["start_lr"],
        lr=golden["lr"],
        final_lr=golden["final_lr"],
        weight_decay=golden["weight_decay"],
        final_weight_decay=golden["final_weight_decay"],
        momentum=tuple(golden["ema"]),
    )
    assert golden["columns"] == ["step", "lr", "weight_decay", "momentum"]
    return schedules, golden["rows"]


@pytest.mark.parametrize("name", ["vith16", "short"])
def test_golden_schedules(name: str) -> None:
    schedules, rows = _recipe(name)
    assert len(rows) > 40
    for step, lr, weight_decay, momentum in rows:
        values = schedules.at(step)
        assert values.lr == pytest.approx(lr, rel=1e-9, abs=0), step
        assert values.weight_decay == pytest.approx(weight_decay, rel=1e-9, abs=0), step
        assert values.momentum == pytest.approx(momentum, rel=1e-9, abs=0), step


@pytest.mark.parametrize("name", ["multiblock_tiny", "clipped_nonuniform_tiny"])
def test_golden_training_steps(name: str) -> None:
    """The recorded training runs give the horizon itself, as `total_steps`."""
    meta = json.loads(str(np.load(GOLDEN / f"{name}.npz")["meta"]))
    optimizer = meta["optimizer"]
    schedules = Schedules(
        warmup_steps=optimizer["warmup_steps"],
        horizon=optimizer["total_steps"],
        start_lr=optimizer["start_lr"],
        lr=optimizer["lr"],
        final_lr=optimizer["final_lr"],
        weight_decay=optimizer["weight_decay"],
        final_weight_decay=optimizer["final_weight_decay"],
        momentum=tuple(optimizer["ema"]),
    )
    assert len(meta["steps"]) == 3
    for step, expected in enumerate(meta["steps"]):
        values = schedules.at(step)
        assert values.lr == pytest.approx(expected["lr"], rel=1e-9, abs=0)
        assert values.weight_decay == pytest.approx(expected["wd"], rel=1e-9, abs=0)
        assert values.momentum == pytest.approx(expected["momentum"], rel=1e-9, abs=0)


def _schedules(**changes: object) -> Schedules:
    plain = {
        "warmup_steps": 4,
        "horizon": 20,
        "start_lr": 1e-4,
        "lr": 1e-3,
        "final_lr": 1e-6,
        "weight_decay": 0.04,
        "final_weight_decay": 0.4,
        "momentum": (0.99, 1.0),
    }
    return Schedules(**(plain | changes))


def test_peak_is_reached_exactly_at_the_end_of_the_warmup() -> None:
    rates = [_schedules().at(step).lr for step in range(20)]
    assert max(rates) == rates[3] == 1e-3
    assert rates[:4] == sorted(rates[:4])
    assert rates[3:] == sorted(rates[3:], reverse=True)


def test_without_warmup_the_cosine_starts_at_once() -> None:
    rates = [_schedules(warmup_steps=0).at(step).lr for step in range(20)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] < 1e-3
    assert rates[19] == pytest.approx(1e-6)


def test_values_stay_at_their_ends_beyond_the_horizon() -> None:
    for step in (20, 21, 1000):
        values = _schedules().at(step)
        assert values.lr == 1e-6
        assert values.weight_decay == 0.4
        assert values.momentum == 1.0


def test_warmup_as_long_as_the_horizon_divides_by_nothing() -> None:
    schedules = _schedules(warmup_steps=20)
    assert schedules.at(19).lr == 1e-3
    assert schedules.at(20).lr == pytest.approx(1e-6)
