"""Features by several processes, and after a process was killed or the disk was full."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import REPOSITORY
from tests.inference.folders import features, files, read
from vjepa_fast.errors import UserError
from vjepa_fast.inference import shard_work
from vjepa_fast.inference.extract import part_of_work

CLIPS = 5  # of a shard; test.csv has 16
# The third shard's features end in a kill, while their file is being written.
KILLED = """
import os, signal, sys
from vjepa_fast.inference import feature_folder, shard_work
shard_work.CLIPS_PER_SHARD = int(sys.argv[1])
written, save = [], feature_folder.save
def interrupted(tensors, metadata):
    written.append(len(tensors))
    if len(written) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return save(tensors, metadata)
feature_folder.save = interrupted
from vjepa_fast.cli import main
sys.exit(main(sys.argv[3:]))
"""


def command(
    demo: Path, run: Path, output: Path, *more: str, kill_at: int = 0, **environment: str
) -> subprocess.Popen:
    """The command in a process of its own."""
    arguments = ["features", demo / "test.csv", "--checkpoint", run, "--output", output]
    words = [sys.executable, "-c", KILLED, CLIPS, kill_at, *arguments, "--workers", 1, *more]
    return subprocess.Popen(
        [str(word) for word in words],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def alone(
    runs: dict, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, bytes]:
    """The files of one process that does everything."""
    monkeypatch.setattr(shard_work, "CLIPS_PER_SHARD", CLIPS)
    assert features(demo / "test.csv", runs[1], tmp_path / "alone") == 0
    found = files(tmp_path / "alone")
    assert len(found) == 2 + 2 * 4
    return found


@pytest.mark.slow
def test_two_processes_leave_the_files_of_one(
    runs: dict, demo: Path, tmp_path: Path, alone: dict
) -> None:
    """Of a launcher, and as a job array."""
    launched = [
        command(demo, runs[1], tmp_path / "env", RANK=str(rank), WORLD_SIZE="2")
        for rank in range(2)
    ]
    for process in launched:
        assert process.wait() == 0, process.stderr.read()
    assert files(tmp_path / "env") == alone

    first = command(demo, runs[1], tmp_path / "jobs", "--shard", "1/2")
    out, error = first.communicate()
    assert first.returncode == 0, error
    assert "part 1 of 2 is done, 2 of 4 shards are there; index.csv is written with" in out
    assert not (tmp_path / "jobs" / "index.csv").exists()
    second = command(demo, runs[1], tmp_path / "jobs", "--shard", "0/2")
    assert second.wait() == 0, second.stderr.read()
    assert files(tmp_path / "jobs") == alone


@pytest.mark.slow
def test_a_killed_command_goes_on_where_it_was(
    runs: dict, demo: Path, tmp_path: Path, alone: dict
) -> None:
    output = tmp_path / "killed"
    process = command(demo, runs[1], output, kill_at=3)
    assert process.wait() == -signal.SIGKILL
    left = {path.name for path in (output / "shards").iterdir()}
    whole = {"00000.csv", "00000.safetensors", "00001.csv", "00001.safetensors"}
    assert left > whole and all(name.startswith(".00002.safetensors.") for name in left - whole)
    kept = {name: (output / "shards" / name).stat().st_mtime_ns for name in whole}
    again = command(demo, runs[1], output)
    assert again.wait() == 0, again.stderr.read()
    assert files(output) == alone
    assert kept == {name: (output / "shards" / name).stat().st_mtime_ns for name in whole}


def test_a_shard_that_was_cut_or_lost_is_made_again(
    runs: dict, demo: Path, tmp_path: Path, alone: dict, capsys: pytest.CaptureFixture
) -> None:
    for name in ("safetensors", "npz"):
        output = tmp_path / name
        assert features(demo / "test.csv", runs[1], output, "--format", name) == 0
        before = files(output)
        shards = output / "shards"
        cut = shards / f"00001.{name}"
        cut.write_bytes(cut.read_bytes()[:-100])
        (shards / f"00002.{name}").unlink()
        (shards / "00003.csv").unlink()
        assert features(demo / "test.csv", runs[1], output, "--format", name) == 0
        assert files(output) == before
    assert before.keys() != alone.keys() and len(read(output)[0]) == 16


def test_a_full_disk_loses_nothing(
    runs: dict, demo: Path, tmp_path: Path, alone: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit on the size of files stands for the disk: shards are larger, tables smaller."""
    output = tmp_path / "full"
    size = len(alone["shards/00000.safetensors"])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            features(demo / "test.csv", runs[1], output)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert files(output).keys() == {"features.json"}
    assert features(demo / "test.csv", runs[1], output) == 0
    assert files(output) == alone


def test_which_part_is_whose() -> None:
    assert part_of_work({}) == (0, 1, 0)
    assert part_of_work({}, (2, 5)) == (2, 5, 0)
    assert part_of_work({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}) == (3, 8, 1)
    step = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2", "SLURM_LOCALID": "1"}
    assert part_of_work(step | {"SLURM_STEP_NODELIST": "a[1-2]"}, (1, 3)) == (6, 12, 1)
    parts = {
        part_of_work({"RANK": str(r), "WORLD_SIZE": "2"}, (i, 3))[:2]
        for r in (0, 1)
        for i in range(3)
    }
    assert parts == {(i, 6) for i in range(6)}
    with pytest.raises(UserError, match="RANK: found 2, expected less than WORLD_SIZE, 2"):
        part_of_work({"RANK": "2", "WORLD_SIZE": "2"})
    with pytest.raises(UserError, match="WORLD_SIZE"):
        part_of_work({"RANK": "0"})
