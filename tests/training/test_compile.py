"""`compile` compiles every block of all three networks once and changes no loss."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from tests.helpers.trainers import GENERATIONS
from tests.rounding.accuracy import ROUNDING
from vjepa_fast.config import Config, parse_config
from vjepa_fast.config.model import build_model
from vjepa_fast.models.jepa import encode_clips, feature_loss
from vjepa_fast.training.batches import Batches
from vjepa_fast.training.build import build_trainer
from vjepa_fast.training.distributed.launch import init_process_group
from vjepa_fast.training.loop import pretrain
from vjepa_fast.training.monitoring.writer import read_metrics

# Weights stay where they are, else AdamW would amplify rounding from step to step. Squares, since
# the slope of |z - y| jumps where rounding turns its sign.
STILL = {"start_lr": 0.0, "lr": 1e-12, "final_lr": 0.0, "loss_exponent": 2.0}
ITEMS = ("loss", "grad_norm_encoder", "grad_norm_predictor")


def exact_steps(config: Config) -> list[list[float]]:
    """`ITEMS` of each step at the initial weights, in float64 but for the loss and positions."""
    model, batches, found = build_model(config).double(), Batches(config, 0, 1), []
    with batches.loader(0, torch.device("cpu")) as clips:
        for step in range(config.optim.steps):
            pairs, losses = list(batches.step(step, clips)), []
            model.zero_grad()
            for video, masks in pairs:
                with torch.no_grad():
                    features = encode_clips(model.encoder, video)
                loss = feature_loss(model(video, masks), features, masks, 2.0) / len(pairs)
                loss.backward()
                losses.append(loss.item())
            networks = (model.encoder, model.predictor)
            gradients = [torch.cat([p.grad.flatten() for p in n.parameters()]) for n in networks]
            found.append([sum(losses), *(g.norm().item() for g in gradients)])
    return found


def largest_errors(data: dict, exact: list[list[float]]) -> list[float]:
    """Run a config; the largest relative error of each of `ITEMS`."""
    rows = read_metrics(pretrain(parse_config(data)) / "metrics.jsonl")
    found = [[row[item] for item in ITEMS] for row in rows if "loss" in row]
    errors = [
        [abs(a / e - 1) for a, e in zip(*pair, strict=True)]
        for pair in zip(found, exact, strict=True)
    ]
    return [max(column) for column in zip(*errors, strict=True)]


def assert_near(found: list[float], plain: list[float]) -> None:
    limits = [2 * error + 16 * ROUNDING for error in plain]
    assert all(f <= limit for f, limit in zip(found, limits, strict=True)), (found, limits)


def test_all_blocks_are_compiled(small_config: Callable[..., dict]) -> None:
    init_process_group()
    for compiled in (False, True):
        trainer = build_trainer(parse_config(small_config(compile=compiled)), 1)
        model, target = trainer.model, trainer.teacher.network()
        blocks = [*model.encoder.blocks, *model.predictor.blocks, *target.blocks]
        assert len(blocks) == 5
        assert [block._compiled_call_impl is not None for block in blocks] == [compiled] * 5


@pytest.mark.slow
@pytest.mark.parametrize("model", GENERATIONS)
def test_compiled_losses_are_the_same(
    small_config: Callable[..., dict], monkeypatch: pytest.MonkeyPatch, model: dict
) -> None:
    """Contexts change their lengths from step to step, which must not recompile anything: each of
    the block's two regions compiles at most three times, once per network. The rotation is in the
    first region."""
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 3)
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)
    torch._dynamo.reset()
    counters.clear()
    data = small_config(optim=STILL | {"steps": 50}, model=model)
    exact = exact_steps(parse_config(data))
    assert len(set(map(tuple, exact))) == 50
    output = data["output"]
    plain = largest_errors(data | {"output": f"{output}-plain"}, exact)
    found = largest_errors(data | {"output": f"{output}-compiled", "compile": True}, exact)
    assert all(f <= 2 * p + 16 * ROUNDING for f, p in zip(found, plain, strict=True)), (
        found,
        plain,
    )
    # the block before and after its attention; target encoder, encoder and predictor
    assert counters["stats"]["unique_graphs"] == 6


@pytest.mark.slow
def test_clips_of_several_lengths_compile_nothing_anew(
    small_config: Callable[..., dict], demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As above, where the grid of the target encoder changes from call to call."""
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 3)
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)
    torch._dynamo.reset()
    counters.clear()
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
    exact = exact_steps(parse_config(data))
    changes = {"compile": True, "activation_checkpointing": "full"}
    plain = largest_errors(data | {"output": f"{data['output']}-plain"}, exact)
    found = largest_errors(data | changes, exact)
    assert all(f <= 2 * p + 16 * ROUNDING for f, p in zip(found, plain, strict=True)), (
        found,
        plain,
    )
