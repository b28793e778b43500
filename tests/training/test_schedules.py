"""Schedules against the published trainer's numbers, and their values at the boundaries."""

import json

import numpy as np
import pytest

from tests.helpers.paths import GOLDEN, REPOSITORY
from vjepa_fast.config import load_config
from vjepa_fast.training.schedules import Schedules, make_schedules


def _recipe(name: str) -> tuple[Schedules, list[list[float]]]:
    golden = json.loads((GOLDEN / "schedules.json").read_text())[name]
    steps = golden["iterations_per_epoch"] * golden["epochs"]
    schedules = Schedules(
        warmup_steps=golden["iterations_per_epoch"] * golden["warmup_epochs"],
        horizon=golden["ipe_scale"] * steps,
        start_lr=golden["start_lr"],
        peak_lr=golden["lr"],
        final_lr=golden["final_lr"],
        start_weight_decay=golden["weight_decay"],
        final_weight_decay=golden["final_weight_decay"],
        start_momentum=golden["ema"][0],
        final_momentum=golden["ema"][1],
    )
    assert golden["columns"] == ["step", "lr", "weight_decay", "momentum"]
    return schedules, golden["rows"]


@pytest.mark.parametrize("name", ["vith16", "short"])
def test_golden_schedules(name: str) -> None:
    schedules, rows = _recipe(name)
    assert len(rows) > 40
    for step, lr, weight_decay, momentum in rows:
        assert schedules.lr(step) == pytest.approx(lr, rel=1e-9, abs=0), step
        assert schedules.weight_decay(step) == pytest.approx(weight_decay, rel=1e-9, abs=0), step
        assert schedules.momentum(step) == pytest.approx(momentum, rel=1e-9, abs=0), step


@pytest.mark.parametrize("name", ["multiblock_tiny", "clipped_nonuniform_tiny"])
def test_golden_training_steps(name: str) -> None:
    """The recorded training runs give the horizon itself, as `total_steps`."""
    meta = json.loads(str(np.load(GOLDEN / f"{name}.npz")["meta"]))
    optimizer = meta["optimizer"]
    schedules = Schedules(
        warmup_steps=optimizer["warmup_steps"],
        horizon=optimizer["total_steps"],
        start_lr=optimizer["start_lr"],
        peak_lr=optimizer["lr"],
        final_lr=optimizer["final_lr"],
        start_weight_decay=optimizer["weight_decay"],
        final_weight_decay=optimizer["final_weight_decay"],
        start_momentum=optimizer["ema"][0],
        final_momentum=optimizer["ema"][1],
    )
    assert len(meta["steps"]) == 3
    for step, expected in enumerate(meta["steps"]):
        assert schedules.lr(step) == pytest.approx(expected["lr"], rel=1e-9, abs=0)
        assert schedules.weight_decay(step) == pytest.approx(expected["wd"], rel=1e-9, abs=0)
        assert schedules.momentum(step) == pytest.approx(expected["momentum"], rel=1e-9, abs=0)


def _schedules(**changes: object) -> Schedules:
    plain = {
        "warmup_steps": 4,
        "horizon": 20,
        "start_lr": 1e-4,
        "peak_lr": 1e-3,
        "final_lr": 1e-6,
        "start_weight_decay": 0.04,
        "final_weight_decay": 0.4,
        "start_momentum": 0.99,
        "final_momentum": 1.0,
    }
    return Schedules(**(plain | changes))


def test_peak_is_reached_exactly_at_the_end_of_the_warmup() -> None:
    rates = [_schedules().lr(step) for step in range(20)]
    assert max(rates) == rates[3] == 1e-3
    assert rates[:4] == sorted(rates[:4])
    assert rates[3:] == sorted(rates[3:], reverse=True)


def test_without_warmup_the_cosine_starts_at_once() -> None:
    rates = [_schedules(warmup_steps=0).lr(step) for step in range(20)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] < 1e-3
    assert rates[19] == pytest.approx(1e-6)


def test_values_stay_at_their_ends_beyond_the_horizon() -> None:
    for step in (20, 21, 1000):
        schedules = _schedules()
        assert schedules.lr(step) == 1e-6
        assert schedules.weight_decay(step) == 0.4
        assert schedules.momentum(step) == 1.0


def test_warmup_as_long_as_the_horizon_divides_by_nothing() -> None:
    schedules = _schedules(warmup_steps=20)
    assert schedules.lr(19) == 1e-3
    assert schedules.lr(20) == pytest.approx(1e-6)


def test_schedules_of_the_papers_recipe() -> None:
    """The recipe as shipped gives the published trainer's numbers (first, peak and last step)."""
    schedules = make_schedules(load_config(REPOSITORY / "configs" / "vith16.json"))
    rows = json.loads((GOLDEN / "schedules.json").read_text())["vith16"]
    for step, lr, weight_decay, momentum in rows["rows"]:
        found = (schedules.lr(step), schedules.weight_decay(step), schedules.momentum(step))
        assert found == pytest.approx((lr, weight_decay, momentum), rel=1e-9, abs=0)
