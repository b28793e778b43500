"""Corrupt, incompatible and malicious checkpoints are rejected by name and never executed."""

from __future__ import annotations

import ast
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.paths import REPOSITORY
from tests.helpers.trainers import make_trainer, run_steps, save_checkpoint
from vjepa_fast.config import parse_config
from vjepa_fast.errors import UserError
from vjepa_fast.training.checkpoint.format import Checkpoint, checkpoints, state_checksum
from vjepa_fast.training.checkpoint.resume import find_resumable, restore
from vjepa_fast.training.distributed.host_group import HostGroup
from vjepa_fast.training.recipe import settings_of

SHARD = "shard_00000.safetensors"


@pytest.fixture(scope="module")
def run_of_three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    trainer = make_trainer()
    for step in range(3):
        run_steps(trainer, step, step + 1)
        save_checkpoint(trainer, run, keep_last=3)
    return run


@pytest.fixture
def run(run_of_three: Path, tmp_path: Path) -> Path:
    """A run with checkpoints of steps 1, 2 and 3, to corrupt."""
    shutil.copytree(run_of_three / "checkpoints", tmp_path / "checkpoints")
    return tmp_path


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


def rejected(run: Path, config: dict | None = None, videos: str = "videos") -> str:
    with pytest.raises(UserError) as caught:
        find_resumable(run, config or {}, videos, HostGroup())
    return str(caught.value)


CORRUPTION = {
    "a bit": (flip_a_bit, SHARD, "found other bytes than were written"),
    "half": (lambda f: os.truncate(f, 1000), SHARD, "found 1000 bytes where "),
    "lost": (Path.unlink, SHARD, "found No such file or directory"),
    "state": (
        lambda f: f.write_text(f.read_text().replace('"step": 3', '"step": 4')),
        "state.json",
        "found a state.json that differs from what was written",
    ),
    "json": (lambda f: os.truncate(f, 100), "state.json", "found no readable state.json"),
    "no state": (Path.unlink, "state.json", "found no readable state.json"),
}


@pytest.mark.parametrize("kind", CORRUPTION)
def test_a_corrupt_newest_one_stops_the_run_and_names_the_one_before(run: Path, kind: str) -> None:
    corrupt, file, found = CORRUPTION[kind]
    newest = checkpoints(run)[-1]
    corrupt(newest / file)
    message = rejected(run)
    assert found in message and str(newest) in message
    assert f"remove it with rm -r {newest} and run the same command again" in message
    assert message.endswith("which will resume from step_00000002, which is intact")
    shutil.rmtree(newest)
    trainer = make_trainer()
    restore(trainer, find_resumable(run, {}, "videos", HostGroup()))
    assert trainer.step_number == 2


def test_all_that_must_be_removed_are_named(run: Path) -> None:
    first, second, third = checkpoints(run)
    for folder in (second, third):
        flip_a_bit(folder / SHARD)
    message = rejected(run)
    assert f"rm -r {second} {third} and" in message and "resume from step_00000001" in message
    flip_a_bit(first / SHARD)
    message = rejected(run)
    assert f"rm -r {first} {second} {third} and" in message
    assert message.endswith("which will start from the beginning")


def test_reading_weights_detects_corruption(run: Path) -> None:
    checkpoint = Checkpoint.find(run)
    checkpoint.weights("encoder", "teacher")
    flip_a_bit(checkpoint.folder / SHARD)
    with pytest.raises(UserError, match="found other bytes than were written, expected an intact"):
        checkpoint.weights("encoder", "teacher")


def test_other_models_recipes_and_videos_are_named(run: Path) -> None:
    checkpoint = Checkpoint.find(run)
    with pytest.raises(UserError, match=r"shape \[24, .*\] instead of .* \[36, .*\]"):
        restore(make_trainer(encoder_width=36), checkpoint)
    assert "found a run of another recipe (seed was null and is 1)" in rejected(run, {"seed": 1})
    assert "found other videos" in rejected(run, videos="others")
    with pytest.raises(UserError, match=r"found no readable state\.json"):
        Checkpoint.find(run / "nowhere")
    state = json.loads((checkpoint.folder / "state.json").read_text())
    (checkpoint.folder / "state.json").write_text(json.dumps(state | {"format": 99}))
    with pytest.raises(UserError, match="found checkpoint format 99, expected 3"):
        Checkpoint.find(run)
    (checkpoint.folder / "state.json").write_text("[]")
    with pytest.raises(UserError, match="found checkpoint format None, expected 3"):
        Checkpoint.find(run)


def test_a_run_from_before_a_key_had_its_default(
    run: Path, small_config: Callable[..., dict]
) -> None:
    own = settings_of(parse_config(small_config()))
    older = {key: value for key, value in own.items() if key != "teacher"}
    older["optim"] = {k: v for k, v in own["optim"].items() if k != "loss_exponent"}
    older["optim"]["momentum"] = own["teacher"]["momentum"]  # its name then
    file = checkpoints(run)[-1] / "state.json"
    state = json.loads(file.read_text()) | {"config": older}
    file.write_text(json.dumps(state | {"checksum": state_checksum(state)}))
    trainer = make_trainer()
    restore(trainer, find_resumable(run, own, "videos", HostGroup()))
    assert trainer.step_number == 3
    own["optim"]["loss_exponent"] = 2.0
    assert "(optim.loss_exponent was 1.0 and is 2.0)" in rejected(run, own)


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable, tuple]:
        return Path.touch, (self.mark,)


def test_no_pickle_is_ever_loaded(run: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    evil = pickle.dumps(Malicious(mark))
    pickle.loads(evil)
    assert mark.exists(), "it would, if it were loaded"
    mark.unlink()
    newest = checkpoints(run)[-1]
    for name in ("model.pt", "mp_rank_00_model_states.pt", "latest", "state.pkl"):
        (newest / name).write_bytes(evil)
    trainer = make_trainer()
    # beside our files it is not even opened
    restore(trainer, find_resumable(run, {}, "videos", HostGroup()))
    assert trainer.step_number == 3
    checkpoint = Checkpoint.open(newest)
    (newest / SHARD).write_bytes(evil)  # in place of a shard it is rejected, verified or not
    rejected(run)
    with pytest.raises(UserError, match="expected an intact shard"):
        checkpoint.read("encoder.decay/master", 0, 10)
    (newest / "state.json").write_bytes(evil)
    rejected(run)
    assert not mark.exists()


def test_no_code_that_reads_checkpoints_could_load_one() -> None:
    loaders, found = {"load_checkpoint", "Unpickler", "loads", "load"}, set()
    for part in ("training", "evaluation"):
        for path in sorted((REPOSITORY / "vjepa_fast" / part).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    names = {alias.name for alias in node.names} | {getattr(node, "module", "")}
                    assert not {"pickle", "dill", "joblib"} & names, path
                elif isinstance(node, ast.Attribute) and node.attr in loaders:
                    found.add(ast.unparse(node))
    assert found == {"json.loads"}
