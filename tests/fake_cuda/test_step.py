"""A step of whole models on the device: no host sync, the planned devices, dtypes and kernels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tests.fake_cuda.device import Operators, counted, host_syncs, reset
from tests.fake_cuda.planned import KERNELS, unplanned
from tests.fake_cuda.steps import WORLD, batches_of, config_of, prepared, trainer_of
from vjepa_fast.config import Config
from vjepa_fast.training.trainer import PretrainingResult, Trainer
from vjepa_fast.training.zero.optimizers import MOMENTS, adam_moments

CASES = {
    "ViT-L": ("vitl16", {}),
    "ViT-L, one micro-batch": ("vitl16", {"accumulation": 1}),
    "ViT-H": ("vith16", {}),
    "V-JEPA 2's ViT-L": ("v2_vitl16", {}),
    "selective": ("vitl16", {"activation_checkpointing": "selective"}),
    "full": ("vitl16", {"activation_checkpointing": "full"}),
    "stage 2": ("vitl16", {"zero.stage": 2}),
    "stage 3": ("vitl16", {"zero.stage": 3}),
}


@dataclass
class Step:
    """A step after two others, and its trainer."""

    config: Config
    trainer: Trainer
    result: PretrainingResult
    counters: dict[str, int]
    operators: Operators
    kernels: dict[str, set[tuple]]


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES)
def step(request: pytest.FixtureRequest) -> Iterator[Step]:
    name, changes = request.param
    config = config_of(name, **changes)
    with prepared() as kernels:
        trainer = trainer_of(config)
        for number in range(2):
            trainer.step(batches_of(config, trainer, number))
        batches = batches_of(config, trainer, 2)
        kernels.clear()
        reset()
        with Operators() as operators:
            result = trainer.step(batches)
        yield Step(config, trainer, result, counted(), operators, kernels)
        trainer.engine.destroy()


def test_nothing_waits_for_the_device(step: Step) -> None:
    """But for stage 3, in which DeepSpeed waits at the end of each backward pass, and one process
    wherever it would gather."""
    assert step.counters["launches"] > 1000
    found = host_syncs(step.counters)
    if step.config.zero.stage == 3:
        waits = found.pop("synchronize stream")
        assert waits == step.trainer.accumulation or WORLD == 1
    assert found == {}


def test_every_tensor_is_on_the_device(step: Step) -> None:
    """On the host there are only the offsets of a batch's sequences."""
    assert step.operators.mixed == set()
    most = 3 * len(step.config.masks.specs) * step.trainer.micro_batch
    assert {name: n for name, n in step.operators.on_host.items() if n > most} == {}


def test_every_dtype_is_planned(step: Step) -> None:
    assert unplanned(step.operators.dtypes) == set()
    assert step.operators.dtypes["addmm"] == {torch.bfloat16}
    assert step.operators.dtypes["_fused_adamw_"] == {torch.float32}


def test_our_kernels_get_tensors_on_the_device(step: Step) -> None:
    rotary = {"rope_kernel"} if step.config.model.positions != "sincos" else set()
    assert set(step.kernels) == KERNELS | rotary
    assert {name for name, calls in step.kernels.items() if any(None in c for c in calls)} == set()


def test_what_a_step_leaves_is_on_the_device_and_fp32_but_for_the_weights(step: Step) -> None:
    trainer = step.trainer
    weights = [*trainer.model.parameters(), *trainer.teacher.network().parameters()]
    kept: list[Tensor] = [step.result.loss, *step.result.grad_norms.values(), trainer.guard.skip]
    for shard in trainer.shards:
        kept += shard.masters
        for moment in MOMENTS:
            kept += adam_moments(trainer.optimizer, shard, moment)
    kept += [ema for group in trainer.ema.values() for ema in group]
    kept += [*trainer.model.buffers(), *trainer.teacher.network().buffers()]
    assert {(t.dtype, t.device.type) for t in weights} == {(torch.bfloat16, "cuda")}
    assert {(t.dtype, t.device.type) for t in kept} == {(torch.float32, "cuda")}
