"""train.py as a user runs it: launchers, run folders, error messages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.helpers.paths import REPOSITORY
from tests.helpers.trainers import SECOND, SLOW_SECOND
from tests.rounding.plain_training import ITEMS, SQUARES, assert_near, plain_run
from vjepa_fast.config import parse_config
from vjepa_fast.training.distributed.launcher import free_port
from vjepa_fast.training.recipe import (
    recipe_changes,
    settings_of,
    with_defaults,
    with_own_folder,
)

TRAIN = str(REPOSITORY / "vjepa_fast" / "train.py")
BIN = Path(sys.executable).parent


def write(config: dict, folder: Path) -> list[str]:
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    return ["--config", str(path)]


def environment() -> dict[str, str]:
    """The environment of a fresh shell, without the variables that a process group here has set."""
    ours = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    return kept | {"OMP_NUM_THREADS": "1", "PATH": f"{BIN}:{kept['PATH']}"}


def run(command: list[str], **options: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=environment(),
        timeout=900,
        check=False,
        **options,
    )


def launched(processes: int) -> list[str]:
    """The first words of a command under DeepSpeed's launcher, on a free port."""
    port = free_port()
    count = ["--num_accelerators", str(processes), "--master_port", str(port)]
    return [str(BIN / "deepspeed"), *count, TRAIN]


def metrics(folder: Path, having: str = "loss") -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if having in row]


def test_a_run_and_what_it_leaves(small_config: Callable[..., dict], tmp_path: Path) -> None:
    arguments = write(small_config(), tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = run([sys.executable, TRAIN, *arguments], cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    assert f"run folder: {tmp_path / 'run'}" in done.stdout
    rows = metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == list(range(8))
    assert all(0 < row["loss"] < 2 and row["clips_per_second"] > 0 for row in rows)
    health = metrics(tmp_path / "run", "std_across_clips")
    assert [row["step"] for row in health] == [3, 7]
    assert {"rank_me", "target_variance", "teacher_distance"} <= health[0].keys()
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert any((tmp_path / "run" / "tensorboard").iterdir())
    for line in ("engine: ZeRO stage 0, fp32", "decoding with pyav", "attention: sdpa"):
        assert done.stderr.count(line) == 1, line

    again = run([sys.executable, TRAIN, *arguments])  # finished: a no-op
    assert again.returncode == 0, again.stderr
    assert "resumed at step 8" in again.stderr
    assert metrics(tmp_path / "run") == rows

    data = small_config()
    whole = Path(data["data"]["manifests"][0]).read_text().splitlines(keepends=True)
    manifest = Path(data["data"]["manifests"][0]).with_name("fewer.csv")  # e.g. indexed again
    manifest.write_text("".join(whole))
    data["data"]["manifests"] = [str(manifest)]
    data["output"] = str(tmp_path / "changed")
    assert run([sys.executable, TRAIN, *write(data, tmp_path)]).returncode == 0
    manifest.write_text("".join(whole[:-8]))
    changed = run([sys.executable, TRAIN, *write(data, tmp_path)])
    assert changed.returncode == 2
    assert "found other videos in data.manifests" in changed.stderr
    assert "Traceback" not in changed.stderr

    edited = write(small_config(optim={"lr": 0.5}), tmp_path)
    other = run([sys.executable, TRAIN, *edited])
    assert other.returncode == 2
    assert "optim.lr was 0.001 and is 0.5" in other.stderr
    assert "Traceback" not in other.stderr
    assert metrics(tmp_path / "run") == rows


def test_an_overridden_recipe_has_a_folder_of_its_own(
    small_config: Callable[..., dict], tmp_path: Path
) -> None:
    arguments = write(small_config(), tmp_path)
    trial = run([sys.executable, TRAIN, *arguments, "--set", "optim.steps=2"])
    assert trial.returncode == 0, trial.stderr
    assert f"run folder: {tmp_path / 'run-optim.steps=2'}" in trial.stdout
    assert len(metrics(tmp_path / "run-optim.steps=2")) == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "folder"),
    [
        ([], "run"),
        (["data.backend=pyav", "zero.stage=0"], "run"),  # not part of the recipe
        (["optim.steps=2"], "run-optim.steps=2"),
        (["seed=3", "optim.lr=1e-4", "log.every=1"], "run-optim.lr=1e-4-seed=3"),
        (["optim.lr=1e-4", "seed=3"], "run-optim.lr=1e-4-seed=3"),
        (["seed=3", "output=elsewhere"], "run"),
        (["model.encoder.depth=" + "9" * 200], "run-model.encoder.depth=" + "9" * 80),
        (['data.manifests=["a/b.csv"]'], "run-data.manifests=_a_b.csv_-"),
    ],
)
def test_the_folder_of_an_overridden_recipe(
    small_config: Callable[..., dict], tmp_path: Path, overrides: list[str], folder: str
) -> None:
    found = with_own_folder(parse_config(small_config()), overrides).output
    exact = folder[-1] not in "9-"  # else a digest follows, which keeps long names distinct
    assert found == str(tmp_path / folder) if exact else found.startswith(str(tmp_path / folder))
    assert len(Path(found).name) < 130


def test_a_run_from_before_the_second_generation_resumes(small_config: Callable[..., dict]) -> None:
    """Its stored config lacks the keys whose defaults are the first generation."""
    own = settings_of(parse_config(small_config()))
    older = own | {"model": {k: v for k, v in own["model"].items() if k not in SECOND}}
    assert list(recipe_changes(with_defaults(older), own)) == []
    second = settings_of(parse_config(small_config(model=SECOND)))
    assert list(recipe_changes(with_defaults(older), second)) == [
        "model.depth_scaled_init was false and is true",
        'model.mask_tokens was "per_spec" and is "shared"',
        'model.positions was "sincos" and is "rope_tiled"',
    ]


@pytest.mark.parametrize("model", SLOW_SECOND)
def test_two_processes_give_the_losses_of_one(
    small_config: Callable[..., dict], tmp_path: Path, model: dict
) -> None:
    optim = SQUARES | {"micro_batch": 2}
    config = parse_config(small_config(optim=optim, model=model))
    plain, exact = (plain_run(config, dtype) for dtype in (torch.float32, torch.float64))
    for processes in (1, 2):
        output = tmp_path / f"on{processes}"
        config = small_config(output=str(output), optim=optim, model=model)
        done = run([*launched(processes), *write(config, tmp_path)])
        assert done.returncode == 0, done.stderr
        rows = metrics(output)
        assert [row["step"] for row in rows] == list(range(8))
        assert_near([[row[item] for item in ITEMS] for row in rows], plain, exact)
        norms = [row["grad_norm_predictor"] for row in rows]
        assert min(norms) > 0.05  # clipping is active


@pytest.mark.slow
def test_a_collapsing_run_says_so(small_config: Callable[..., dict], tmp_path: Path) -> None:
    """The learning rate is too high for the momentum, so features become a function of position."""
    optim = {"steps": 60, "global_batch": 16, "micro_batch": 16, "warmup_steps": 0}
    optim |= {"start_lr": 3e-3, "lr": 3e-3, "clip_grad": None}
    config = small_config(
        optim=optim,
        teacher={"momentum": [0.9, 0.9]},
        masks={"truncate_group": 16},
        log={"every": 20, "collapse_every": 10},
    )
    done = run([sys.executable, TRAIN, *write(config, tmp_path)])
    assert done.returncode == 0, done.stderr
    health = [row["std_across_clips"] for row in metrics(tmp_path / "run", "std_across_clips")]
    assert health[0] > 2 * health[-1], health
    assert health[-1] < 0.1
    assert done.stderr.count("raise teacher.momentum") == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--config", "nowhere.json"], "nowhere.json"),
        (["--config", "configs/tiny.json", "--set", "optim.lrate=1"], "optim.lrate"),
        (
            ["--config", "configs/tiny.json", "--set", 'data.manifests=["none.csv"]'],
            "none.csv",
        ),
    ],
)
def test_mistakes_are_one_sentence(arguments: list[str], sentence: str) -> None:
    folders = set(REPOSITORY.glob("runs/*none.csv*"))
    done = run([sys.executable, TRAIN, *arguments], cwd=REPOSITORY)
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert sentence in errors[0]
    assert "Traceback" not in done.stderr
    assert "engine:" not in done.stderr  # found before the model is built
    assert set(REPOSITORY.glob("runs/*none.csv*")) == folders
