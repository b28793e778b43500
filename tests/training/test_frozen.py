"""Runs with a frozen target encoder, and runs that stop after too many non-finite steps."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.helpers.trainers import SLOW_SECOND
from vjepa_fast.config import Config
from vjepa_fast.errors import UserError
from vjepa_fast.inference.load import load_target_encoder
from vjepa_fast.training.checkpoint.format import Checkpoint
from vjepa_fast.training.loop import pretrain
from vjepa_fast.training.recipe import stored_config
from vjepa_fast.training.trainer import Trainer


@pytest.mark.parametrize("model", SLOW_SECOND)
def test_a_frozen_target_encoder_stays_and_resumes(
    configured: Callable[..., Config], tmp_path: Path, model: dict
) -> None:
    def changed(**sections: object) -> Config:
        return configured(**{"model": model} | sections)

    first = pretrain(changed(optim={"steps": 4}))
    teacher = Checkpoint.find(first).weights("encoder", "teacher")
    frozen = {"mode": "frozen", "checkpoint": str(first)}

    seen = []
    own = Trainer.step

    def step(self: Trainer, batches: object) -> object:
        result = own(self, batches)
        seen.append({n: p.clone() for n, p in self.teacher.network().named_parameters()})
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", step)
        whole = pretrain(changed(output=str(tmp_path / "whole"), teacher=frozen))
    assert len(seen) == 8
    for weights in (seen[0], seen[-1]):
        assert all(torch.equal(weights[name], teacher[name]) for name in teacher)

    # Resumed from the checkpoint at half the steps:
    stopped = whole.with_name("halves")
    (stopped / "checkpoints").mkdir(parents=True)
    half = whole / "checkpoints" / "step_00000004"
    half.rename(stopped / "checkpoints" / half.name)
    halves = pretrain(changed(output=str(stopped), teacher=frozen))
    ends = [Checkpoint.find(run) for run in (whole, halves)]
    trained = [end.weights("encoder", "master") for end in ends]
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])
    assert not all(torch.equal(trained[0][name], teacher[name]) for name in teacher)

    # The teacher's run has a newer checkpoint since: that is another recipe, not a silent change.
    pretrained = Checkpoint.find(first).folder
    later = pretrained.with_name("step_00000005")
    shutil.copytree(pretrained, later)
    with pytest.raises(UserError, match=r"teacher\.checkpoint was .*4\" and is .*5\""):
        pretrain(changed(output=str(whole), teacher=frozen))
    pinned = frozen | {"checkpoint": str(pretrained)}
    assert pretrain(changed(output=str(whole), teacher=pinned)) == whole
    shutil.rmtree(later)

    encoder = load_target_encoder(ends[0])  # a probe of this run uses the trained weights
    assert all(torch.equal(p, trained[0][name]) for name, p in encoder.named_parameters())
    wide = model | {"encoder": {"width": 48, "depth": 2, "heads": 2}}
    with pytest.raises(UserError, match=r"^teacher\.checkpoint: .* was 24 and is 48"):
        pretrain(configured(output=str(tmp_path / "wide"), teacher=frozen, model=wide))


def test_a_teacher_of_another_encoder_is_refused_where_no_shape_shows_it(
    configured: Callable[..., Config], tmp_path: Path
) -> None:
    model = {"positions": "rope_tiled", "depth_scaled_init": True}
    short = {"steps": 1}
    first = pretrain(configured(model=model, optim=short))
    frozen = {"mode": "frozen", "checkpoint": str(first)}
    for number, (changes, found) in enumerate(
        (
            ({"positions": "rope"}, 'model.positions was "rope_tiled" and is "rope"'),
            ({"positions": "sincos"}, 'model.positions was "rope_tiled" and is "sincos"'),
            (
                {"encoder": {"width": 24, "depth": 2, "heads": 1}},
                "model.encoder.heads was 2 and is 1",
            ),
        )
    ):
        run = tmp_path / f"other{number}"
        with pytest.raises(UserError) as caught:
            pretrain(configured(output=str(run), teacher=frozen, model=model | changes))
        expected = f"teacher.checkpoint: found {Checkpoint.find(first).folder} of another encoder ("
        assert str(caught.value).startswith(f"{expected}{found}), expected")
        assert not (run / "metrics.jsonl").exists()
    same = {
        "predictor": {"width": 12, "depth": 2, "heads": 1},
        "depth_scaled_init": False,
        "uniform_power": False,  # of a table that rotations don't have
    }
    run = tmp_path / "same"
    pretrain(configured(output=str(run), teacher=frozen, model=model | same, optim=short))

    later = Checkpoint.find(first).state["config"]
    later["model"]["positions"] = "spirals"
    with pytest.raises(UserError, match=r"^runs/x: found a stored config that .*spirals"):
        stored_config(later, Path("runs/x"))


@pytest.mark.parametrize(
    ("teacher", "found"),
    [
        ({"mode": "frozen"}, "teacher.checkpoint: found null with teacher.mode frozen, expected a"),
        ({"checkpoint": "x"}, "teacher.checkpoint: found x with teacher.mode ema, expected null"),
        ({"mode": "still"}, "teacher.mode"),
    ],
)
def test_mistakes_are_one_sentence(
    configured: Callable[..., Config], teacher: dict, found: str
) -> None:
    with pytest.raises(UserError) as caught:
        configured(teacher=teacher)
    assert str(caught.value).startswith(found)


def test_non_finite_steps_warn_and_then_stop_the_run(
    configured: Callable[..., Config],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    own = Trainer.target_features

    def features(self: Trainer, video: torch.Tensor) -> torch.Tensor:
        bad = self.step_number in (1, 4, 5, 6)
        return own(self, video) * (float("nan") if bad else 1.0)

    monkeypatch.setattr(Trainer, "target_features", features)
    config = configured(optim={"max_nonfinite_steps": 3}, log={"every": 1})
    sentence = r"^optim\.max_nonfinite_steps: found 3 steps in a row, up to step 6"
    caplog.set_level(logging.WARNING, "vjepa_fast")
    with pytest.raises(UserError, match=sentence) as stopped:
        pretrain(config)
    assert "loss, grad_norm_encoder, grad_norm_predictor was not finite" in str(stopped.value)
    assert "step_00000004" in str(stopped.value)
    assert "step 1: loss, grad_norm_encoder, grad_norm_predictor not finite" in caplog.text
    lines = (Path(config.output) / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "lr" in row]
    assert [row["skipped_steps"] for row in rows] == [0, 1, 1, 1, 2, 3]
    assert [row["step"] for row in rows if "loss" not in row] == [1, 4, 5]

    # Resumed at step 4, before the last three: the counts up to then are kept.
    monkeypatch.setattr(Trainer, "target_features", own)
    caplog.clear()
    pretrain(config)
    lines = (Path(config.output) / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "lr" in row]
    assert [row["skipped_steps"] for row in rows] == [0, 1, 1, 1, 1, 1, 1, 1]
    assert "not finite" not in caplog.text
