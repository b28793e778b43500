"""What the tests stand on: threads, scheduling, warnings, programs of several ranks."""

from __future__ import annotations

import multiprocessing
import os
import re
import runpy
import tomllib
from pathlib import Path

import pytest
import torch

from tests.helpers.paths import REPOSITORY
from tests.helpers.ranks import run_ranks

CONFTEST = str(REPOSITORY / "tests" / "conftest.py")


@pytest.mark.parametrize(
    ("given", "used"),
    [(None, 1), ("1", 1), ("2", 2), ("4,2", 1), ("", 1), ("0", 1), ("64", 1), ("many", 1)],
)
def test_tests_run_on_one_thread_or_two(monkeypatch, given, used):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # is restored afterwards
    if given is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    before = torch.get_num_threads()
    try:
        runpy.run_path(CONFTEST)
        assert torch.get_num_threads() == used
        assert os.environ["OMP_NUM_THREADS"] == str(used)
    finally:
        torch.set_num_threads(before)


def policy_afterwards(share, policy, priority):
    """The scheduling that a process has which chose this one; None where it may not."""
    try:
        os.sched_setscheduler(0, policy, os.sched_param(priority))
    except PermissionError:
        return None
    share()
    return os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK


@pytest.mark.parametrize(
    ("before", "priority", "after"),
    [
        (os.SCHED_IDLE, 0, os.SCHED_IDLE),
        (os.SCHED_BATCH, 0, os.SCHED_BATCH),
        (os.SCHED_RR, 1, os.SCHED_OTHER),
        (os.SCHED_FIFO, 1, os.SCHED_OTHER),
        (os.SCHED_RR | os.SCHED_RESET_ON_FORK, 1, os.SCHED_OTHER),  # the flag stays
    ],
)
def test_only_real_time_scheduling_is_taken_back(before, priority, after):
    from tests.conftest import _share_processors as share

    with multiprocessing.get_context("fork").Pool(1) as pool:
        found = pool.apply(policy_afterwards, (share, before, priority))
    if found is None:
        pytest.skip("needs the right to real-time scheduling")
    assert found == after


def test_warnings_are_errors_in_our_own_modules_only():
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["pytest"]
    filters = settings["ini_options"]["filterwarnings"]
    assert [line.split(":")[:2] for line in filters] == [*(["error", ""] for _ in filters)], (
        "the message comes first"
    )
    bench = REPOSITORY / "bench"
    ours = [path.stem for path in bench.glob("*.py")]
    ours += [f"{path.parent.name}.{path.stem}" for path in bench.glob("*/*.py")]
    ours += ["vjepa_fast", "vjepa_fast.masks.sampler", __name__]
    others = [
        "torch",
        "torch.masks",
        "numpy.tests",
        "benchmarks.run",
        "steps",
        "testsuite",
        "kernels_x",
    ]
    for line in filters:
        module = line.split(":")[3]
        assert [name for name in ours if not re.match(module, name)] == []
        assert [name for name in others if re.match(module, name)] == []


def test_ranks_may_print_more_than_a_pipe_holds(tmp_path: Path) -> None:
    """Rank 0 goes on when rank 1 has printed all."""
    program = f"""
import json, os, pathlib, time
done = pathlib.Path({str(tmp_path / "done")!r})
if os.environ["RANK"] == "0":
    while not done.exists():
        time.sleep(0.01)
print("FOUND" + json.dumps("x" * 1_000_000), flush=True)
done.touch()
"""
    assert run_ranks(["-c", program], 2, seconds=60) == ["x" * 1_000_000] * 2
