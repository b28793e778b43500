"""Predicting pixels, without a target encoder: every ZeRO stage trains as a plain loop does.

Each process of a group runs this file as a program.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist

from tests.helpers.ranks import run_ranks
from tests.helpers.trainers import CLIPS, SCHEDULES, make_model, make_trainer, micro_batch
from tests.rounding.plain_training import assert_near, largest_errors, train_plainly
from vjepa_fast.training.distributed.launch import end_process_group, init_process_group

STEPS, CLIP_GRAD = 6, 0.05
SCHEDULE = replace(SCHEDULES, horizon=STEPS)
CASES = [{"stage": stage} for stage in (0, 1, 2, 3)] + [{"stage": 1, "bf16": True}]


def run_case(case: dict) -> list[list[float]]:
    """Loss and gradient norms of each step. Collective."""
    rank, world = dist.get_rank(), dist.get_world_size()
    trainer = make_trainer(
        clip_grad=CLIP_GRAD,
        clips=CLIPS // world,
        schedules=SCHEDULE,
        objective="pixels",
        **case,
    )
    assert trainer.teacher is None and trainer.ema == {}
    found = []
    for step in range(STEPS):
        result = trainer.step([micro_batch(step, rank, world)])
        assert result.features is None
        norms = [norm.item() for norm in result.grad_norms.values()]
        found.append([result.global_loss().item(), *norms])
    return found


@pytest.mark.parametrize("world", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_stages_equal_a_plain_loop(world: int) -> None:
    plain, exact = (
        train_plainly(
            make_model(objective="pixels").to(dtype),
            SCHEDULE,
            ([micro_batch(step)] for step in range(STEPS)),
            CLIP_GRAD,
            "pixels",
        )[0]
        for dtype in (torch.float32, torch.float64)
    )
    assert exact[-1][0] < exact[0][0]
    for found in run_ranks([__file__, json.dumps(CASES)], world, seconds=600):
        for case, steps in zip(CASES, found, strict=True):
            if case.get("bf16"):
                loss, *gradients = largest_errors(steps, exact)
                assert loss <= 1e-2 and max(gradients) <= 5e-2, case
            else:
                assert_near(steps, plain, exact)


if __name__ == "__main__":
    torch.set_num_threads(1)
    init_process_group()
    print("FOUND" + json.dumps([run_case(case) for case in json.loads(sys.argv[1])]), flush=True)
    end_process_group()
