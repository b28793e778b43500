"""`compile` compiles every block of all three networks once and changes no loss."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch._dynamo.utils import counters

from vjepa_fast.config import parse_config
from vjepa_fast.training.batches import Batches
from vjepa_fast.training.build import build_trainer
from vjepa_fast.training.distributed.launch import init_process_group
from vjepa_fast.training.loop import pretrain
from vjepa_fast.training.monitoring.writer import read_metrics


def test_all_blocks_are_compiled(small_config: Callable[..., dict]) -> None:
    init_process_group()
    for compiled in (False, True):
        trainer = build_trainer(parse_config(small_config(compile=compiled)), 1)
        model, target = trainer.model, trainer.teacher.network()
        blocks = [*model.encoder.blocks, *model.predictor.blocks, *target.blocks]
        assert len(blocks) == 5
        assert [block._compiled_call_impl is not None for block in blocks] == [compiled] * 5


@pytest.mark.slow
def test_compiled_losses_are_the_same(
    small_config: Callable[..., dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Contexts change their lengths from step to step, which must not recompile anything: each of
    the block's two regions compiles at most three times, once per network."""
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 3)
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)
    torch._dynamo.reset()
    counters.clear()
    losses = {}
    for compiled in (False, True):
        data = small_config(output=f"{small_config()['output']}{compiled}", compile=compiled)
        data["optim"]["steps"] = 50
        run = pretrain(parse_config(data))
        rows = read_metrics(run / "metrics.jsonl")
        losses[compiled] = [row["loss"] for row in rows if "loss" in row]
    assert len(losses[True]) == 50
    # sums in another order, whose rounding AdamW amplifies
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)
    # the block before and after its attention; target encoder, encoder and predictor
    assert counters["stats"]["unique_graphs"] == 6


@pytest.mark.parametrize(("mode", "stage"), [("selective", 1), ("full", 2)])
def test_activation_checkpointing_is_passed_on_and_changes_no_loss(
    small_config: Callable[..., dict], mode: str, stage: int
) -> None:
    init_process_group()
    losses, changed = {}, small_config(zero={"stage": stage})
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
def test_compiled_blocks_can_be_recomputed(small_config: Callable[..., dict]) -> None:
    losses = {}
    for mode in ("none", "full"):
        data = small_config(compile=True, activation_checkpointing=mode)
        data["output"] += mode
        rows = read_metrics(pretrain(parse_config(data)) / "metrics.jsonl")
        losses[mode] = [row["loss"] for row in rows if "loss" in row]
    assert losses["full"] == pytest.approx(losses["none"], rel=1e-5)
