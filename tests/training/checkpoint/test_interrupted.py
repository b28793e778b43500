"""Runs that are killed, stopped by signals, moved to another world size, or short of disk."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.forked_runs import Run, Runs, small_file_system
from tests.helpers.trainers import SECOND
from tests.rounding.plain_training import SQUARES, assert_near, plain_run
from vjepa_fast.config import parse_config
from vjepa_fast.training.checkpoint.format import Checkpoint, checkpoints

LONG = 100_000  # steps that no test waits for


def losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "loss" in row]
    assert [row["step"] for row in rows] == list(range(len(rows)))
    return [row["loss"] for row in rows]


def same_weights(first: Path, second: Path) -> bool:
    """Whether the newest checkpoints of two runs hold the same bits."""
    shards = [sorted(checkpoints(folder)[-1].glob("shard_*")) for folder in (first, second)]
    assert len(shards[0]) == len(shards[1])
    for files in zip(*shards, strict=True):
        a, b = map(load_file, files)
        if a.keys() != b.keys() or not all(a[name].equal(b[name]) for name in a):
            return False
    return True


def has_saved(run: Path, count: int = 1) -> Callable[[], bool]:
    return lambda: len(checkpoints(run)) >= count


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kills", "model"),
    [
        (20, {}),
        (5, SECOND),
    ],
    ids=["20", "second"],
)
def test_kills_at_random_moments_cost_less_than_an_interval(
    runs: Runs, small_config: Callable[..., dict], tmp_path: Path, kills: int, model: dict
) -> None:
    steps, every, chance = 16 * kills, 5, random.Random(kills)
    checkpoint = {"every": every, "background": True}
    sections = {"optim": {"steps": steps}, "checkpoint": checkpoint, "model": model}
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    runs.finish(small_config(output=str(straight), **sections))
    config = small_config(output=str(killed), **sections)

    def reached() -> int:
        """Steps that are done, by the metrics."""
        text = (killed / "metrics.jsonl").read_text() if killed.exists() else ""
        return 1 + max(map(int, re.findall(r'"step": (\d+), "loss"', text)), default=-1)

    def wait_for(run: Run, step: int) -> None:
        run.until(lambda: "data wait" in run.text and reached() >= step)

    saved, lost = 0, []
    for _ in range(kills):
        run, target = runs.start(config), saved + chance.randint(1, 2 * every)
        wait_for(run, target)
        assert saved == 0 or f"resumed at step {saved} " in run.text
        time.sleep(chance.uniform(0, 0.05))
        run.send(signal.SIGKILL)
        assert run.wait() == -signal.SIGKILL
        steps_saved = [Checkpoint.open(folder).state["step"] for folder in checkpoints(killed)]
        saved = max(steps_saved, default=0)
        lost.append(reached() - saved)
    # a save in the background is still under way while at most one more interval goes by
    assert max(lost) <= 2 * every, lost
    assert ("resumed at" in runs.finish(config)) == (saved > 0)
    assert losses(killed) == losses(straight)
    assert same_weights(straight, killed)


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        signal.SIGHUP,
        pytest.param(signal.SIGUSR1, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_and_stops(
    runs: Runs, small_config: Callable[..., dict], tmp_path: Path, number: int
) -> None:
    """Also if its decoding processes get it, as from a terminal or DeepSpeed's launcher."""
    folder = tmp_path / "run"
    optim, checkpoint = {"steps": LONG}, {"every": LONG}
    config = small_config(optim=optim, checkpoint=checkpoint, data={"backend": "pyav"})
    run = runs.start(config)
    run.until(lambda: "data wait" in run.text)
    family = psutil.Process(run.pid).children(recursive=True)
    assert family
    for process in family:
        process.send_signal(number)
    time.sleep(0.1)
    run.send(number)
    assert run.wait() == 0, run.text
    name = signal.Signals(number).name
    assert run.text.count(f"{name}: finishing this step") == 1
    stopped = int(re.search(rf"stopped after step (\d+) of {LONG}, saved \({name}\)", run.text)[1])
    assert Checkpoint.find(folder).state["step"] == stopped == len(losses(folder)) > 0
    assert "Traceback" not in run.text
    assert not (folder / "bad_videos.jsonl").exists()
    assert not psutil.wait_procs(family, timeout=120)[1]


@pytest.mark.slow
def test_a_signal_at_one_process_stops_all_and_they_resume_bit_for_bit(
    runs: Runs, small_config: Callable[..., dict], tmp_path: Path
) -> None:
    optim, checkpoint = {"steps": 60}, {"every": 5}
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    runs.finish(small_config(output=str(straight), optim=optim, checkpoint=checkpoint), world=2)
    config = small_config(output=str(stopped), optim=optim, checkpoint=checkpoint)
    both = runs.together(config, 2)
    both[1].until(has_saved(stopped))
    both[1].send(signal.SIGUSR1)
    assert [run.wait() for run in both] == [0, 0], both[0].text + both[1].text
    assert "saved (SIGUSR1)" in both[0].text
    step = Checkpoint.find(stopped).state["step"]
    assert 5 <= step < 60
    assert f"resumed at step {step} " in runs.finish(config, world=2)
    assert losses(stopped) == losses(straight)
    assert same_weights(straight, stopped)


def test_the_second_signal_ends_a_process_at_once_even_in_a_collective(
    runs: Runs, small_config: Callable[..., dict], tmp_path: Path
) -> None:
    config = small_config(optim={"steps": LONG}, checkpoint={"every": LONG})
    first, second = runs.together(config, 2)
    first.until(lambda: "data wait" in first.text)
    second.send(signal.SIGSTOP)  # the first waits in a collective for good
    time.sleep(0.3)
    first.send(signal.SIGTERM)
    first.send(signal.SIGTERM)  # an echo
    first.until(lambda: "SIGTERM: finishing this step" in first.text)
    time.sleep(1.1)
    first.send(signal.SIGTERM)
    assert first.wait() == 128 + signal.SIGTERM  # the collective itself never ends like this
    assert "SIGTERM again: stopping at once" in first.text
    second.send(signal.SIGCONT)
    assert second.wait() == 2
    errors = [line for line in second.text.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "found that another process of this run is gone" in errors[0]
    assert "Traceback" not in second.text


def test_an_error_on_one_host_ends_all(
    runs: Runs, small_config: Callable[..., dict], tmp_path: Path
) -> None:
    """Rank 1 cannot make its output folder; rank 0 does not wait for it in a collective."""
    file = tmp_path / "file"
    file.touch()
    outputs = [str(tmp_path / "run"), str(file / "run")]
    both = runs.together([small_config(output=output) for output in outputs], 2)
    assert [run.wait() for run in both] == [2, 2]
    assert f"error: output: found {outputs[1]}, where nothing can be written" in both[1].text
    assert "another process of this run is gone" in both[0].text
    assert "Traceback" not in both[0].text + both[1].text


@pytest.mark.slow
def test_the_same_command_again_is_refused_while_the_first_one_runs(
    runs: Runs, small_config: Callable[..., dict], tmp_path: Path
) -> None:
    """On all ranks, before it touches the folder; the first run loses nothing."""
    folder = tmp_path / "run"
    config = small_config(optim={"steps": LONG}, checkpoint={"every": 5})
    first = runs.start(config)
    first.until(has_saved(folder))
    again = runs.together(config, 2)
    assert [run.wait() for run in again] == [2, 2], again[0].text
    for run in again:
        sentence = f"error: {folder}: found that another process writes to it (host "
        assert run.text.count(sentence) == 1 and f", process {first.pid}, since " in run.text
        assert "Traceback" not in run.text and "resumed" not in run.text
    first.send(signal.SIGTERM)
    assert first.wait() == 0, first.text
    assert len(losses(folder)) == Checkpoint.find(folder).state["step"] >= 5


@pytest.mark.slow
@pytest.mark.parametrize("worlds", [(1, 2, 1), (2, 4)])
def test_another_world_size_resumes(
    runs: Runs, small_config: Callable[..., dict], tmp_path: Path, worlds: tuple[int, ...]
) -> None:
    """Same global batches, same losses but for rounding."""
    optim = SQUARES | {
        "steps": 5 * len(worlds),
        "micro_batch": 8,
    }  # at most: a process has fewer clips
    moved = tmp_path / "moved"
    config = small_config(output=str(moved), optim=optim, checkpoint={"every": 5, "keep_last": 9})
    for number, world in enumerate(worlds):
        text = runs.finish(config, world)
        assert number == 0 or f"resumed at step {5 * number} " in text
        for folder in checkpoints(moved)[number + 1 :]:  # as if it had been stopped there
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
        saved = Checkpoint.find(moved)
        assert (saved.state["step"], saved.world_size) == (5 * (number + 1), world)
    plain, exact = (
        [row[:1] for row in plain_run(parse_config(config), dtype)]
        for dtype in (torch.float32, torch.float64)
    )
    assert_near([[loss] for loss in losses(moved)], plain, exact)


def check_recovery(text: str, folder: Path, straight: Path) -> None:
    assert text.count("expected space for a checkpoint; free some (the run continues") >= 1
    assert "Traceback" not in text
    assert losses(folder) == losses(straight)
    assert same_weights(straight, folder)
    assert not list(folder.glob("checkpoints/.*"))


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_costs_a_checkpoint_and_not_the_run(
    runs: Runs, small_config: Callable[..., dict], tmp_path: Path
) -> None:
    optim, checkpoint = {"steps": 40}, {"every": 10, "background": True}
    straight, folder = tmp_path / "straight", tmp_path / "full"
    runs.finish(small_config(output=str(straight), optim=optim, checkpoint=checkpoint))
    config = small_config(output=str(folder), optim=optim, checkpoint=checkpoint)
    with small_file_system(folder / "checkpoints", 2**21):
        ballast = folder / "checkpoints" / "ballast"
        ballast.write_bytes(bytes(2**21 - 2**16 - 2**17))  # leaves less than a checkpoint
        run = runs.start(config)
        run.until(lambda: "the run continues" in run.text)
        assert "found No space left on device on rank 0" in run.text
        assert "tries again at step 11" in run.text
        assert not checkpoints(folder)
        ballast.unlink()
        assert run.wait() == 0, run.text
        check_recovery(run.text, folder, straight)


@pytest.mark.slow
def test_one_process_that_cannot_write_makes_all_skip_the_checkpoint(
    runs: Runs, small_config: Callable[..., dict], tmp_path: Path
) -> None:
    """By a limit on file sizes, as a full disk is full for all. At the run's end it is an error."""
    config = small_config(optim={"steps": 6}, checkpoint={"every": 2})
    config["data"]["backend"] = "dali"  # clips come from PyAV's processes through files in memory
    both: list[Run] = runs.together(config, 2, limits={1: 4096})
    assert [run.wait() for run in both] == [2, 2], both[0].text + both[1].text
    assert "found File too large on rank 1" in both[0].text
    for step in (3, 5):
        assert f"tries again at step {step}" in both[0].text
    assert "expected space for the run's last checkpoint; free some" in both[0].text
    assert "Traceback" not in both[0].text + both[1].text
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
