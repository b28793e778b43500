"""`compile`: every block of all three networks, once, and the same losses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch._dynamo.utils import counters

from vjepa_fast.config import Config
from vjepa_fast.training.build import build_trainer
from vjepa_fast.training.launch import init_process_group
from vjepa_fast.training.loop import pretrain
from vjepa_fast.training.metrics import read_metrics


def test_all_blocks_are_compiled(small_config: Callable[..., dict]) -> None:
    init_process_group()
    for compiled in (False, True):
        trainer = build_trainer(Config.model_validate(small_config(compile=compiled)), 1)
        model, target = trainer.model, trainer.teacher.encoder
        blocks = [*model.encoder.blocks, *model.predictor.blocks, *target.blocks]
        assert len(blocks) == 5
        assert [block._compiled_call_impl is not None for block in blocks] == [compiled] * 5


@pytest.mark.slow
def test_compiled_losses_are_the_same(small_config: Callable[..., dict]) -> None:
    """Contexts change their lengths from step to step: that must not compile anything anew."""
    torch._dynamo.reset()
    counters.clear()
    losses = {}
    for compiled in (False, True):
        data = small_config(output=f"{small_config()['output']}{compiled}", compile=compiled)
        data["optim"]["steps"] = 50
        run = pretrain(Config.model_validate(data))
        rows = read_metrics(run / "metrics.jsonl")
        losses[compiled] = [row["loss"] for row in rows if "loss" in row]
    assert len(losses[True]) == 50
    assert losses[True] == pytest.approx(losses[False], rel=1e-5)
    # norm, qkv, output projection, MLP: for the target encoder, the encoder and the predictor
    assert 0 < counters["stats"]["unique_graphs"] <= 12
