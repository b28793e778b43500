"""The checkpoint with the best probe is kept, linked, and found again after a kill anywhere."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.forked_runs import Runs
from tests.helpers.trainers import make_trainer
from vjepa_fast.config.schema import CheckpointConfig
from vjepa_fast.training.checkpoint.best import find_best
from vjepa_fast.training.checkpoint.format import Checkpoint, checkpoints
from vjepa_fast.training.checkpoint.writer import Saver
from vjepa_fast.training.distributed.host_group import HostGroup
from vjepa_fast.training.trainer import Trainer

MEASURE = "accuracy of label_action"


def saver_of(run: Path, measure: str | None = MEASURE, background: bool = False) -> Saver:
    policy = CheckpointConfig(keep_last=1, background=background)
    return Saver(run, {}, "videos", policy, HostGroup(), measure)


def save(saver: Saver, trainer: Trainer, step: int, value: float | None) -> None:
    trainer.step_number = step
    saver.save(trainer, value)
    saver.finish()


def kept(run: Path) -> tuple[list[int], int | None]:
    """Steps of the checkpoints, and of the best one."""
    steps = [int(folder.name.removeprefix("step_")) for folder in checkpoints(run)]
    link = run / "checkpoints" / "best"
    return steps, Checkpoint.find(link).state["step"] if link.is_symlink() else None


@pytest.mark.parametrize("background", [False, True])
def test_the_best_is_kept_beside_the_newest(tmp_path: Path, background: bool) -> None:
    trainer = make_trainer()
    saver = saver_of(tmp_path, background=background)
    assert saver.is_best(-1.0) and not saver.is_best(None)
    for step, value, expected in (
        (1, None, ([1], None)),
        (2, 0.25, ([2], 2)),
        (3, None, ([2, 3], 2)),
        (4, 0.25, ([2, 4], 2)),  # the earliest of equal ones
        (5, 0.5, ([5], 5)),
        (6, 0.375, ([5, 6], 5)),
    ):
        save(saver, trainer, step, value)
        assert kept(tmp_path) == expected
    assert Checkpoint.find(tmp_path).state["step"] == 6  # the one to resume
    saver.close()
    again = saver_of(tmp_path)
    assert not again.is_best(0.5) and again.is_best(0.6)
    save(again, trainer, 7, 0.4)
    assert kept(tmp_path) == ([5, 7], 5)
    again.close()


def test_what_a_kill_leaves_is_put_right(tmp_path: Path) -> None:
    """After the rename and before the link, and in the middle of the link."""
    trainer, saver = make_trainer(), saver_of(tmp_path)
    save(saver, trainer, 1, 0.25)
    save(saver, trainer, 2, 0.5)
    save(saver, trainer, 3, 0.125)
    link = tmp_path / "checkpoints" / "best"
    for wrong in ("step_00000003", "step_00000001", None):
        link.unlink()
        if wrong:
            link.symlink_to(wrong)
        link.with_name(".best.new").unlink(missing_ok=True)
        link.with_name(".best.new").symlink_to("step_00000009")
        again = saver_of(tmp_path)
        assert kept(tmp_path) == ([2, 3], 2)
        assert not again.is_best(0.5) and again.is_best(0.625)
        again.close()
    saver.close()


def test_values_of_another_probe_do_not_count(tmp_path: Path) -> None:
    """Without a probe the linked checkpoint stays; another probe's first value is its best."""
    trainer, saver = make_trainer(), saver_of(tmp_path)
    save(saver, trainer, 1, 0.75)
    saver.close()
    without = saver_of(tmp_path, measure=None)
    save(without, trainer, 2, None)
    without.close()
    assert kept(tmp_path) == ([1, 2], 1)
    other = saver_of(tmp_path, measure="another")
    assert kept(tmp_path) == ([1, 2], 1) and other.is_best(0.1)
    save(other, trainer, 3, 0.1)
    assert kept(tmp_path) == ([3], 3)
    other.close()


def test_a_corrupt_checkpoint_is_not_the_best(tmp_path: Path) -> None:
    trainer, saver = make_trainer(), saver_of(tmp_path)
    save(saver, trainer, 1, 0.75)
    save(saver, trainer, 2, 0.5)
    saver.close()
    (tmp_path / "checkpoints" / "step_00000001" / "state.json").write_text("{")
    assert find_best(tmp_path, MEASURE) == ("step_00000002", 0.5)


def test_a_link_that_cannot_be_made_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("vjepa_fast"), "propagate", True)
    """One for each best checkpoint, which is kept all the same."""
    (tmp_path / "checkpoints" / "best" / "in_the_way").mkdir(parents=True)
    trainer, saver = make_trainer(), saver_of(tmp_path)
    for step, value in ((1, 0.5), (2, None), (3, 0.25), (4, None)):
        save(saver, trainer, step, value)
    saver.close()
    assert kept(tmp_path) == ([1, 4], None)
    assert caplog.text.count("to step_00000001, the best checkpoint (") == 1


def values(run: Path) -> dict[int, float]:
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {row["step"] + 1: row["probe_accuracy"] for row in rows if "probe_accuracy" in row}


@pytest.mark.slow
def test_two_processes_at_stage_3_find_what_one_finds(
    runs: Runs, small_config: Callable[..., dict], tmp_path: Path
) -> None:
    found = []
    for world, stage in ((1, 0), (2, 3)):
        run = tmp_path / f"on{world}"
        log = {"probe_every": 2, "probe_label": "direction", "probe_videos": 40}
        runs.finish(
            small_config(output=str(run), zero={"stage": stage}, optim={"steps": 4}, log=log), world
        )
        found.append(values(run))
        best = Checkpoint.find(run / "checkpoints" / "best").state
        assert best["probe"]["value"] == max(found[-1].values())
    assert list(found[0]) == list(found[1]) == [2, 4]
    # Of 8 videos; rounding may turn one.
    assert all(abs(found[0][step] - found[1][step]) <= 1 / 8 for step in found[0])


@pytest.mark.slow
def test_kills_at_random_moments_lose_no_best(
    runs: Runs, small_config: Callable[..., dict], tmp_path: Path
) -> None:
    sections = {
        "optim": {"steps": 60},
        "checkpoint": {"every": 7, "keep_last": 1, "background": True},
        "log": {"probe_every": 3, "probe_label": "direction"},
    }
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    runs.finish(small_config(output=str(straight), **sections))
    config, chance = small_config(output=str(killed), **sections), random.Random(0)
    for _ in range(4):
        run, before = runs.start(config), len(checkpoints(killed))
        run.until(lambda run=run: "probe accuracy" in run.text or run.text.count("data wait") > 3)
        time.sleep(chance.uniform(0, 0.3))
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
        assert len(checkpoints(killed)) >= min(before, 1)
    runs.finish(config)
    assert values(killed) == values(straight)
    best = [Checkpoint.find(run / "checkpoints" / "best").state for run in (straight, killed)]
    assert best[0]["step"] == best[1]["step"] == max(values(killed), key=values(killed).get)
    assert best[0]["shards"] == best[1]["shards"]
