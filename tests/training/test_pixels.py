"""Runs that predict pixels: what they write, how they resume, and what cannot be had of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vjepa_fast.commands.info import info_text
from vjepa_fast.config import Config
from vjepa_fast.errors import UserError
from vjepa_fast.exchange.export.source import open_source
from vjepa_fast.inference.load import load_target_encoder
from vjepa_fast.training.checkpoint.format import Checkpoint
from vjepa_fast.training.loop import pretrain
from vjepa_fast.training.trainer import Trainer

PIXELS = {"objective": "pixels"}


def rows_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_has_no_target_encoder_and_resumes_bit_for_bit(
    configured: Callable[..., Config], tmp_path: Path
) -> None:
    log = {"every": 1, "collapse_every": 4, "histograms_every": 4}
    whole = pretrain(configured(**PIXELS, log=log))
    rows = rows_of(whole)
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 8 and losses[-1] < losses[0]
    assert not any("momentum" in row or "teacher_distance" in row for row in rows)
    assert all(row["rank_me"] > 1 for row in rows if "rank_me" in row)
    assert sum("rank_me" in row for row in rows) == 2
    assert (whole / "pictures").is_dir()
    end = Checkpoint.find(whole)
    assert end.result_weights == "master"
    assert not any(key.endswith("/teacher") for key in _keys(end))

    stopped = tmp_path / "halves"
    (stopped / "checkpoints").mkdir(parents=True)
    half = whole / "checkpoints" / "step_00000004"
    half.rename(stopped / "checkpoints" / half.name)
    halves = Checkpoint.find(pretrain(configured(**PIXELS, log=log, output=str(stopped))))
    for part in ("encoder", "predictor"):
        ours, theirs = (run.weights(part, "master") for run in (end, halves))
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)

    trained = end.weights("encoder", "master")
    encoder = load_target_encoder(end)  # what a probe of this run uses
    assert all(torch.equal(p, trained[name]) for name, p in encoder.named_parameters())
    source = open_source(end.folder)
    assert not source.has_ema and not source.has_predictor and source.network == "encoder"


def _keys(checkpoint: Checkpoint) -> list[str]:
    from safetensors import safe_open

    found: list[str] = []
    for file in checkpoint.folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as shard:
            found += shard.keys()
    assert found
    return found


def test_the_encoder_starts_from_another_objective_and_its_predictor_does_not(
    configured: Callable[..., Config], tmp_path: Path
) -> None:
    short = {"steps": 4}
    features = pretrain(configured(optim=short))
    init = {"checkpoint": str(features)}
    with pytest.raises(
        UserError, match=r"^init\.predictor: found checkpoint, but .* predicts feat"
    ):
        pretrain(configured(**PIXELS, init=init, output=str(tmp_path / "a")))

    started = []
    with pytest.MonkeyPatch.context() as patch:
        own = Trainer.step

        def step(self: Trainer, batches: object) -> object:
            started.append(self.model.encoder.norm.weight.detach().clone())
            return own(self, batches)

        patch.setattr(Trainer, "step", step)
        init |= {"predictor": "fresh"}
        pixels = pretrain(configured(**PIXELS, init=init, optim=short, output=str(tmp_path / "b")))
    expected = Checkpoint.find(features).weights("encoder", "master")["norm.weight"]
    assert torch.equal(started[0], expected)
    origin = json.loads((pixels / "started_from.json").read_text())["origin"]
    assert origin.endswith("encoder from checkpoint, predictor from fresh")

    back = {"checkpoint": str(pixels), "predictor": "fresh"}
    with pytest.raises(UserError, match=r"^init\.target_encoder: found checkpoint, but .* without"):
        pretrain(configured(init=back, output=str(tmp_path / "c")))
    with pytest.raises(UserError, match=r'objective was "features" and is "pixels"'):
        pretrain(configured(**PIXELS, optim=short))


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"objective": "pixel"}, "objective: found "),
        ({"teacher": {"mode": "frozen", "checkpoint": "x"}}, "teacher.mode: found frozen with obj"),
        (
            {
                "zero": {"stage": 3},
                "log": {"probe_every": 2, "probe_label": "digit"},
            },
            "zero.stage: found 3 with log.probe_every and objective pixels, expected 0, 1 or 2",
        ),
    ],
)
def test_mistakes_are_one_sentence(
    configured: Callable[..., Config], changes: dict, found: str
) -> None:
    with pytest.raises(UserError) as caught:
        configured(**(PIXELS | changes))
    assert str(caught.value).startswith(found)


def test_info_counts_no_target_encoder(configured: Callable[..., Config]) -> None:
    text, of_features = (info_text(configured(objective=o)) for o in ("pixels", "features"))
    assert "predicts pixels" in text and "target encoder, forward" not in text
    assert "target encoder, forward" in of_features
