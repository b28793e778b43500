"""`compile` compiles every block of all three networks once and changes no loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from tests.helpers.trainers import GENERATIONS
from tests.rounding.plain_training import ITEMS, SQUARES, assert_near, plain_run
from vjepa_fast.config import parse_config
from vjepa_fast.training.batches import Batches
from vjepa_fast.training.build import build_trainer
from vjepa_fast.training.distributed.launch import init_process_group
from vjepa_fast.training.loop import pretrain
from vjepa_fast.training.monitoring.writer import read_metrics

# Weights stay where they are, so that 50 steps cost no accuracy.
STILL = SQUARES | {"start_lr": 0.0, "lr": 1e-12, "final_lr": 0.0}


def steps_of(data: dict) -> list[list[float]]:
    """Run a config; `ITEMS` of each step."""
    rows = read_metrics(pretrain(parse_config(data)) / "metrics.jsonl")
    return [[row[item] for item in ITEMS] for row in rows if "loss" in row]


def test_all_blocks_are_compiled(small_config: Callable[..., dict]) -> None:
    init_process_group()
    for compiled in (False, True):
        trainer = build_trainer(parse_config(small_config(compile=compiled)), 1)
        model, target = trainer.model, trainer.teacher.network()
        blocks = [*model.encoder.blocks, *model.predictor.blocks, *target.blocks]
        assert len(blocks) == 5
        assert ["forward" in vars(block) for block in blocks] == [compiled] * 5


@pytest.fixture
def three_compilations() -> Iterator[None]:
    """More than three compilations of a region fail; counters begin at zero."""
    limits = {"recompile_limit": 3, "fail_on_recompile_limit_hit": True}
    with torch._dynamo.config.patch(**limits):  # monkeypatch would delete the settings at its end
        torch._dynamo.reset()
        counters.clear()
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("three_compilations")
@pytest.mark.parametrize("model", GENERATIONS)
def test_compiled_losses_are_the_same(small_config: Callable[..., dict], model: dict) -> None:
    """Contexts change their lengths from step to step, which must not recompile anything: each of
    the block's two regions compiles at most three times, once per network. The rotation is in the
    first region."""
    data = small_config(optim=STILL | {"steps": 50}, model=model)
    exact = plain_run(parse_config(data), torch.float64)
    assert len(set(map(tuple, exact))) == 50
    output = data["output"]
    plain = steps_of(data | {"output": f"{output}-plain"})
    found = steps_of(data | {"output": f"{output}-compiled", "compile": True})
    assert_near(found, plain, exact)
    # the block before and after its attention; target encoder, encoder and predictor
    assert counters["stats"]["unique_graphs"] == 6


@pytest.mark.slow
@pytest.mark.usefixtures("three_compilations")
def test_clips_of_several_lengths_compile_nothing_anew(
    small_config: Callable[..., dict], demo: Path
) -> None:
    """As above, where the grid of the target encoder changes from call to call."""
    csv = str(demo / "train.csv")
    data = small_config(
        data={"manifests": [csv, *({"path": csv, "num_frames": n} for n in (4, 6))]},
        model={"positions": "rope_tiled", "mask_tokens": "shared"},
        optim={"steps": 6, "global_batch": 24},
        compile=True,
    )
    rows = read_metrics(pretrain(parse_config(data)) / "metrics.jsonl")
    assert len([row for row in rows if "loss" in row]) == 6
    assert counters["stats"]["unique_graphs"] == 6


@pytest.mark.parametrize(("mode", "stage"), [("selective", 1), ("full", 2)])
@pytest.mark.parametrize("model", GENERATIONS)
def test_activation_checkpointing_is_passed_on_and_changes_no_loss(
    small_config: Callable[..., dict], mode: str, stage: int, model: dict
) -> None:
    init_process_group()
    losses, changed = {}, small_config(zero={"stage": stage}, model=model)
    for chosen in ("none", mode):
        config = parse_config(changed | {"activation_checkpointing": chosen})
        trainer = build_trainer(config, 1)
        for network in (trainer.model.encoder, trainer.model.predictor):
            assert network.activation_checkpointing == chosen
        batches = Batches(config, 0, 1)
        with batches.loader(0, trainer.device) as clips:
            micro_batches = (batches.step(n, clips) for n in range(3))
            steps = [trainer.step(batch) for batch in micro_batches]
        losses[chosen] = [step.loss.item() for step in steps]
    assert losses[mode] == losses["none"]
    assert len(set(losses[mode])) == 3


@pytest.mark.slow
@pytest.mark.parametrize("model", GENERATIONS)
def test_compiled_blocks_can_be_recomputed(small_config: Callable[..., dict], model: dict) -> None:
    data = small_config(optim=STILL, model=model)
    exact = plain_run(parse_config(data), torch.float64)
    changes = {"compile": True, "activation_checkpointing": "full"}
    plain = steps_of(data | {"output": f"{data['output']}-plain"})
    found = steps_of(data | changes)
    assert_near(found, plain, exact)
