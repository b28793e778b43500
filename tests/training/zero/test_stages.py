"""Every ZeRO stage, on any number of processes, trains as a plain PyTorch loop does."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.trainers import make_model
from tests.training.zero.stage_runs import WIDTH, launch, plain_loop

HOST = {"offload_optimizer": True}
BOTH = {"offload_optimizer": True, "offload_parameters": True}
CHEAP = [{"stage": 0}, {"stage": 1}, {"stage": 2}, {"stage": 3}, {"stage": 3} | BOTH]
ALL = [*CHEAP, {"stage": 1} | HOST, {"stage": 2} | HOST, {"stage": 3} | HOST]
LOW = [{"stage": stage, "bf16": True} for stage in (1, 2, 3)]


def check(cases: list[dict], steps: int, world: int) -> None:
    losses, weights, _ = plain_loop(steps)
    norms = {
        group: torch.cat([w.reshape(-1) for n, w in weights.items() if in_group(n, w)]).norm()
        for group, in_group in {
            "encoder.decay": lambda n, w: n.startswith("encoder.") and w.ndim > 1,
            "encoder.no_decay": lambda n, w: n.startswith("encoder.") and w.ndim == 1,
        }.items()
    }
    for found in launch(cases, steps, world):
        assert len(found) == len(cases)
        for case, result in zip(cases, found, strict=True):
            near = 1e-2 if case.get("bf16") else 1e-5
            assert result["losses"] == pytest.approx(losses, rel=near), case
            assert result["teacher_gap"] <= 1e-7, case
            for group, norm in norms.items():
                assert result["norms"][group] == pytest.approx(norm.item(), rel=near), case
            grad_norms = pytest.approx(found[0]["grad_norms"], rel=5 * near)
            assert result["grad_norms"] == grad_norms, case
            check_communication(case, result, world)


def check_communication(case: dict, result: dict, world: int) -> None:
    """The teacher gathers the target encoder's weights once where the masters are sharded, and the
    student communicates as with a frozen teacher."""
    moved = dict(result["bytes"])
    encoder = list(make_model(0, WIDTH).encoder.parameters())
    size = sum(p.numel() for p in encoder) * (2 if case.get("bf16") else 4)
    own = {key: moved.pop(key) for key in list(moved) if key.startswith("teacher")}
    if case["stage"] == 0 or world == 1:
        assert own == {}, case
    else:
        padding = 4 * world * (len(encoder) if case["stage"] == 3 else 4)
        assert len(own) == 1 and "gather" in next(iter(own)), case
        assert size <= sum(own.values()) < size + padding, case
    assert moved == result["bytes_frozen"], case
    assert result["gather_in_flight"] == bool(own), case  # the next step waits
    # stage 3: weights as they are used, and all persistent parameters in one call
    assert sum(n for key, n in result["calls"].items() if "gather" in key) < 20, case
    if world > 1:
        reduced = sum(size for key, size in moved.items() if "reduce" in key)
        gradients = 4 * sum(p.numel() for p in make_model(0, WIDTH).parameters())
        assert gradients <= reduced < 1.01 * gradients, case  # once and in fp32, in bf16 as well


def test_stages_equal_a_plain_loop() -> None:
    check([*CHEAP, *LOW], steps=10, world=2)


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2, 4])
def test_all_stages_equal_a_plain_loop(world: int) -> None:
    check(ALL, steps=50, world=world)


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_teacher_is_an_unsharded_ema(world: int) -> None:
    cases = [*ALL, *LOW]
    for found in launch(cases, 100, world):
        for case, result in zip(cases, found, strict=True):
            assert result["teacher_gap"] <= 1e-7, case
            check_communication(case, result, world)
