"""`vjepa-fast probe` under launchers: several processes find what one finds."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from vjepa_fast.evaluation.heads.spec import HeadSpec
from vjepa_fast.evaluation.run_heads import check_learned
from vjepa_fast.training.distributed.launcher import free_port

BIN = Path(sys.executable).parent
TWO = {
    "torchrun": ["torchrun", "--nproc-per-node", "2", "--no-python"],
    "deepspeed": ["deepspeed", "--num_accelerators", "2", "--no_local_rank", "--no_python"],
}
FIXED = ["--segments", "2", "--crops", "2", "--validation", "0.2"]
RANDOM = ["--augment", "--flip", "--segments", "2"]


def probe(run: Path, output: Path, launcher: str | None, arguments: list[str]) -> dict:
    """The content of probe.json."""
    ours = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    env = {name: value for name, value in os.environ.items() if name not in ours}
    env |= {"OMP_NUM_THREADS": "1", "PATH": f"{BIN}:{env['PATH']}"}
    command = TWO.get(launcher, [])[:]
    if launcher:
        name = "--master-port" if launcher == "torchrun" else "--master_port"
        command[1:1] = [name, str(free_port())]
    command += ["vjepa-fast", "probe", "--checkpoint", str(run), "--output", str(output)]
    command += ["--labels", "digit,direction", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"written to {output}") == 1
    return json.loads((output / "probe.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "more"),
    [("torchrun", FIXED), ("deepspeed", FIXED), ("torchrun", RANDOM)],
    ids=["stored", "stored, deepspeed", "streamed"],
)
def test_two_processes_find_what_one_finds(
    trained: Path, tmp_path: Path, launcher: str, more: list[str]
) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    more = ["--epochs", "3", "--batch", "16", *more]
    more = ["--label-shares", "0.5,1", "--draws", "2", "--lr", "1e-3,1e-2", *more]
    one, two = (probe(run, tmp_path / str(by), by, more) for by in (None, launcher))
    assert one["videos"] == two["videos"] and one["targets"] == two["targets"]
    assert len(one["grid"]) == len(two["grid"]) == 2 * (1 + 2) * 2
    for a, b in zip(one["grid"], two["grid"], strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)
        for split in ("validation", "test"):
            # Rounding may turn the guess of a video whose best classes are equally likely.
            assert b[split]["top1"] == pytest.approx(a[split]["top1"], abs=1.5 / 10)


@pytest.mark.slow
def test_nearest_neighbors_on_two_processes(trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    one, two = (probe(run, tmp_path / str(by), by, ["--probe", "knn"]) for by in (None, "torchrun"))
    assert one["results"] == two["results"]


def test_one_process_warns_of_draws_without_videos(caplog: pytest.LogCaptureFixture) -> None:
    specs = [HeadSpec("a", 2, draw, 0.5, 1e-3, 0.0) for draw in (0, 1)]
    for rank in (0, 1):
        check_learned(specs, [True, False], Path("m.csv"), SimpleNamespace(rank=rank), "features")
    assert caplog.text.count("in draw 1, which is left out") == 1
