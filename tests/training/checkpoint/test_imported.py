"""Runs that start from imported weights: fewer parts, other numbers of mask tokens, no moments."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.rounding.accuracy import ROUNDING
from tests.training.checkpoint.test_initial_weights import loss_at_step_0, losses, same, spoil
from tests.weights import published_files
from vjepa_fast.commands.report import report_html
from vjepa_fast.config import Config
from vjepa_fast.errors import UserError
from vjepa_fast.exchange.import_weights import import_weights
from vjepa_fast.training.checkpoint.format import Checkpoint
from vjepa_fast.training.checkpoint.initial_weights import mask_tokens_from
from vjepa_fast.training.loop import pretrain

SECOND = {"positions": "rope_tiled", "mask_tokens": "shared", "depth_scaled_init": True}
SPEC = {"num_blocks": 1, "spatial_scale": [0.4, 0.4]}
LARGER = {"num_frames": 12, "crop_size": 32}


def imported(
    tmp_path: Path, second: bool = False, mask_tokens: int = 2, encoder_only: bool = False
) -> Path:
    """The run folder of an imported file, whose name is vit.pt."""
    content = published_files.checkpoint(mask_tokens, second=second)
    if encoder_only:
        content = {"encoder": content["encoder"]}
    file = published_files.save(content, tmp_path / "vit.pt")
    known = published_files.SECOND if second else published_files.FIRST
    return import_weights(file, tmp_path / "imported", generation=1 + second, **known).run


# The second generation's files hold ten mask tokens, of which training used one.
STARTS = {
    "first": (False, 2, {}, 2, [0, 1]),
    "first, other clips and masks": (False, 2, LARGER, 4, [0, 1, 1, 1]),
    "first, fewer masks": (False, 2, {}, 1, [0]),
    "second": (True, 10, {}, 2, [0]),
    "second, other clips and masks": (True, 10, LARGER, 3, [0]),
}


@pytest.mark.parametrize("kind", STARTS)
def test_a_run_starts_from_imported_weights(
    configured: Callable[..., Config],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    kind: str,
) -> None:
    second, saved, data, specs, tokens = STARTS[kind]
    folder = imported(tmp_path, second, mask_tokens=saved)
    checkpoint = Checkpoint.find(folder)
    assert checkpoint.imported["generation"] == 1 + second
    config = configured(
        output=str(tmp_path / "run"),
        init={"checkpoint": str(folder)},
        data=data,
        model=SECOND if second else {},
        masks={"specs": [SPEC] * specs},
        optim={"steps": 1},
    )
    expected = loss_at_step_0(config, checkpoint, tokens)
    caplog.set_level(logging.INFO, "vjepa_fast")
    run = pretrain(config)
    assert losses(run) == [pytest.approx(expected, rel=16 * ROUNDING)]
    origin = f"step 0 of {checkpoint.folder} (imported from vit.pt): encoder from checkpoint, pred"
    assert f"started from {origin}" in caplog.text
    shutil.rmtree(folder)
    assert origin in report_html(run)
    stored = json.loads((run / "config.json").read_text())["init"]
    assert stored["checkpoint"] == str(checkpoint.folder)
    assert len(Checkpoint.find(run).weights("predictor", "master")["mask_tokens"]) == len(tokens)


def test_tokens_that_were_never_used_are_not_taken(
    configured: Callable[..., Config], tmp_path: Path
) -> None:
    """Of ten stored tokens only the first was trained, so each mask spec starts from that one."""
    folder = imported(tmp_path, second=True, mask_tokens=10)
    own = configured(model=SECOND | {"mask_tokens": "per_spec"}, masks={"specs": [SPEC] * 3})
    assert mask_tokens_from(own, Checkpoint.find(folder)) == [0, 0, 0]


def test_one_encoder_stands_for_both(
    configured: Callable[..., Config], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is asked for without its predictor, whose shape is then free."""
    folder = imported(tmp_path, encoder_only=True)
    common = {"optim": {"steps": 1, "start_lr": 0.0, "lr": 1e-12, "final_lr": 0.0}}
    with pytest.raises(UserError) as caught:
        pretrain(configured(init={"checkpoint": str(folder)}, **common))
    assert str(caught.value) == (
        f"init.predictor: found checkpoint, but {folder}/checkpoints/step_00000000 has no "
        'predictor, expected one in it; set this key to "fresh"'
    )
    caplog.set_level(logging.INFO, "vjepa_fast")
    init = {"checkpoint": str(folder), "predictor": "fresh"}
    wider = {"predictor": {"width": 20, "depth": 2, "heads": 2}}
    run = pretrain(configured(init=init, model=wider, **common))
    start, end = Checkpoint.find(folder), Checkpoint.find(run)
    for which in ("master", "teacher"):
        found = end.weights("encoder", which)
        torch.testing.assert_close(found, start.weights("encoder", "master"))
    text = "vit.pt, whose one encoder is both encoder and target encoder): encoder from checkpoint"
    assert text in caplog.text
    assert text in report_html(run)


def test_it_can_be_a_frozen_target_encoder(
    configured: Callable[..., Config], tmp_path: Path
) -> None:
    folder = imported(tmp_path, encoder_only=True)
    frozen = {"mode": "frozen", "checkpoint": str(folder)}
    config = configured(teacher=frozen, optim={"steps": 2})
    run = pretrain(config)
    assert len(losses(run)) == 2
    teacher = json.loads((run / "config.json").read_text())["teacher"]
    assert teacher["checkpoint"] == str(Checkpoint.find(folder).folder)


def test_such_a_run_resumes_without_the_imported_folder(
    configured: Callable[..., Config], tmp_path: Path
) -> None:
    folder = imported(tmp_path)
    init = {"checkpoint": str(folder)}
    whole = pretrain(configured(output=str(tmp_path / "whole"), init=init))
    half = tmp_path / "half" / "checkpoints" / "step_00000004"
    shutil.copytree(whole / "checkpoints" / half.name, half)
    shutil.rmtree(folder)
    resumed = pretrain(configured(output=str(tmp_path / "half"), init=init))
    ends = [Checkpoint.find(run) for run in (whole, resumed)]
    for which in (("encoder", "master"), ("encoder", "teacher"), ("predictor", "master")):
        assert same(*(end.weights(*which) for end in ends))


def test_numbers_that_are_not_finite_are_refused(
    configured: Callable[..., Config], tmp_path: Path
) -> None:
    folder = imported(tmp_path)
    spoil(Checkpoint.find(folder).folder, "encoder.decay/teacher", torch.nan)
    with pytest.raises(UserError, match=r"found NaN or infinity in encoder\.decay/teacher"):
        pretrain(configured(init={"checkpoint": str(folder)}))


def files_of(folder):
    """All files but the lock of the process that was refused."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")


def test_an_imported_folder_is_not_a_run_to_resume(
    configured: Callable[..., Config], tmp_path: Path
) -> None:
    folder = imported(tmp_path)
    before = files_of(folder)
    with pytest.raises(
        UserError, match=r"imported, which holds imported weights.*init\.checkpoint"
    ):
        pretrain(configured(output=str(folder)))
    assert files_of(folder) == before


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"encoder": published_files.ENCODER | {"heads": 4}}, "model.encoder.heads was 2 and is 4"),
        (
            {"predictor": published_files.PREDICTOR | {"heads": 1}},
            "model.predictor.heads was 2 and is 1",
        ),
        ({"patch_size": 4}, "model.patch_size was 8 and is 4"),
        ({"positions": "rope"}, 'model.positions was "sincos" and is "rope"'),
    ],
)
def test_weights_of_another_model_are_refused_with_the_key(
    configured: Callable[..., Config], tmp_path: Path, changes: dict, key: str
) -> None:
    folder = imported(tmp_path)
    init = {"checkpoint": str(folder)}
    with pytest.raises(UserError) as caught:
        pretrain(configured(init=init, model=changes))
    assert f"of another model ({key}), expected weights of the same model; set" in str(caught.value)
    stored = Checkpoint.find(folder).state["config"]["model"]  # as the import prints it
    assert len(losses(pretrain(configured(init=init, model=stored, optim={"steps": 1})))) == 1


@pytest.mark.parametrize("name", ["jepa.pth.tar", "vitl.pt", "model.safetensors", "folder"])
@pytest.mark.parametrize("section", ["init", "teacher"])
def test_published_files_have_to_be_imported_first(
    configured: Callable[..., Config], tmp_path: Path, section: str, name: str
) -> None:
    path = tmp_path / name
    if name == "folder":  # as transformers writes it
        path.mkdir()
        (path / "config.json").write_text("{}")
        (path / "model.safetensors").touch()
    else:
        path.touch()
    mode = {"mode": "frozen"} if section == "teacher" else {}
    with pytest.raises(UserError) as caught:
        pretrain(configured(**{section: {"checkpoint": str(path)} | mode}))
    assert f"run vjepa-fast import {path} --output runs/NAME, and name runs/NAME" in str(
        caught.value
    )
