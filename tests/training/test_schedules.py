"""Schedules against the published trainer's numbers, and their values at the boundaries."""

import json
import math
from fractions import Fraction

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


EVERY_SCHEDULE = pytest.mark.parametrize("lr_schedule", ["cosine", "constant", "linear"])


def _closed_form(s: Schedules, position: int) -> Fraction | float:
    """The learning rate at `position` (step + 1), in exact fractions but for the cosine."""
    start, peak, final = (Fraction(value) for value in (s.start_lr, s.peak_lr, s.final_lr))
    if position < s.warmup_steps:
        return start + (peak - start) * Fraction(position, s.warmup_steps)
    if s.lr_schedule == "constant":
        return peak
    done = Fraction(position - s.warmup_steps, max(1, int(s.horizon) - s.warmup_steps))
    done = min(max(done, Fraction(0)), Fraction(1))
    if s.lr_schedule == "linear":
        return peak + (final - peak) * done
    return float(final) + float(peak - final) * (1 + math.cos(math.pi * float(done))) / 2


@EVERY_SCHEDULE
@pytest.mark.parametrize("horizon", [20, 25.0, 22.5, 4, 2])
@pytest.mark.parametrize("warmup_steps", [0, 1, 4])
def test_learning_rates_are_their_closed_forms(
    lr_schedule: str, horizon: float, warmup_steps: int
) -> None:
    schedules = _schedules(lr_schedule=lr_schedule, horizon=horizon, warmup_steps=warmup_steps)
    for step in range(30):
        expected = float(_closed_form(schedules, step + 1))
        assert schedules.lr(step) == pytest.approx(expected, rel=1e-14, abs=0), step


@EVERY_SCHEDULE
def test_the_warmup_is_the_same_whatever_follows(lr_schedule: str) -> None:
    schedules = _schedules(lr_schedule=lr_schedule)
    # 1e-4 to 1e-3 in four steps, the first one at step 0:
    assert [schedules.lr(step) for step in range(3)] == pytest.approx([3.25e-4, 5.5e-4, 7.75e-4])
    assert schedules.lr(3) == 1e-3  # exactly


def test_a_line_ends_exactly_and_stays() -> None:
    """The cooldown of the second generation: 5.25e-4 to 1e-6 over 12,000 steps, no warm-up."""
    ends = {"peak_lr": 5.25e-4, "final_lr": 1e-6, "warmup_steps": 0, "lr_schedule": "linear"}
    schedules = _schedules(**ends, horizon=12_000)
    assert schedules.lr(0) == pytest.approx(5.25e-4 - 5.24e-4 / 12_000, rel=1e-14)
    assert schedules.lr(5_999) == pytest.approx((5.25e-4 + 1e-6) / 2, rel=1e-14)
    assert [schedules.lr(step) for step in (11_999, 12_000, 10**6)] == [1e-6] * 3
    # The released files stretch the line to 1.25 times the steps, so that it ends at a fifth.
    stretched = _schedules(**ends, horizon=1.25 * 12_000)
    assert stretched.lr(11_999) == pytest.approx(1.058e-4, rel=1e-12)


def test_equal_ends_are_constant_to_the_last_bit() -> None:
    constant = {"start_weight_decay": 0.04, "final_weight_decay": 0.04}
    constant |= {"start_momentum": 0.99925, "final_momentum": 0.99925}
    schedules = _schedules(**constant, lr_schedule="constant", horizon=240_000)
    for step in (0, 1, 3, 4, 5, 17_333, 120_000, 239_998, 239_999, 240_000, 10**7):
        assert schedules.weight_decay(step) == 0.04
        assert schedules.momentum(step) == 0.99925
        assert step < 3 or schedules.lr(step) == 1e-3


def test_the_config_names_the_decay() -> None:
    path = REPOSITORY / "configs" / "vith16.json"
    assert make_schedules(load_config(path)).lr_schedule == "cosine"
    assert make_schedules(load_config(path, ["optim.lr_schedule=linear"])).lr_schedule == "linear"
