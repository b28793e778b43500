"""Worker processes that crash, hang, are killed or lose their parent; the pixels they return."""

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import CancelledError
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers import videos
from tests.helpers.paths import REPOSITORY
from vjepa_fast.data.bad_clips import BadClips
from vjepa_fast.data.decode.pyav import PyavDecoder, decode_clip
from vjepa_fast.data.loader import ClipLoader
from vjepa_fast.data.manifest.files import read_manifest
from vjepa_fast.data.plan.crops import Augment
from vjepa_fast.data.plan.planner import ClipPlanner
from vjepa_fast.data.workers.fork_server import fork_server
from vjepa_fast.data.workers.process_pool import ProcessPool
from vjepa_fast.errors import UserError

ROOT = REPOSITORY


@pytest.fixture
def pool():
    made = ProcessPool(2, "vjepa-test", seconds=60)
    yield made
    made.close()


@pytest.fixture
def manifest(tmp_path):
    paths = [videos.write_numbered(tmp_path, "h264", 40, f"{i}") for i in range(4)]
    return videos.manifest_of(tmp_path, paths)


def planned(manifest):
    return ClipPlanner(
        [read_manifest(manifest)], num_frames=6, frame_step=2, augment=Augment(), seed=1
    )


def is_there(pid):
    """Whether any of its threads is: they go one by one, and then the sockets close."""
    try:
        states = [
            stat.read_text().rpartition(")")[2].split()[0]
            for stat in Path(f"/proc/{pid}/task").glob("*/stat")
        ]
    except OSError:
        return is_there(pid)  # one went while it was looked at
    return any(state not in "ZX" for state in states)


def parent_of(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def wait_until(condition):
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def one_that_sleeps(pool):
    """A worker in the middle of its work."""
    future = pool.submit(time.sleep, 600)
    wait_until(lambda: future.running() and pool.pids)
    return future


def test_results_and_errors_come_back(pool):
    sent = [pool.submit(divmod, i, 3) for i in range(50)]
    assert [future.result() for future in sent] == [divmod(i, 3) for i in range(50)]
    large = pool.submit(np.arange, 5_000_000).result()
    assert large.dtype == np.int64 and np.array_equal(large, np.arange(5_000_000))
    assert pool.submit(np.zeros, (0, 3), np.uint8).result().shape == (0, 3)
    with pytest.raises(ZeroDivisionError) as error:
        pool.submit(divmod, 1, 0).result()
    assert "In a worker process" in error.value.__notes__[0]
    with pytest.raises(TimeoutError, match="its own"):  # not to be taken for a late worker
        pool.submit(eval, "(_ for _ in ()).throw(TimeoutError('its own'))").result()
    with pytest.raises(TypeError, match="cannot pickle"):
        pool.submit(socket.socket).result()


@pytest.mark.parametrize(
    ("function", "argument", "reason"),
    [
        (ctypes.string_at, 0, r"FFmpeg crashed \(signal 11\)"),
        (signal.raise_signal, signal.SIGABRT, r"FFmpeg crashed \(signal 6\)"),
        (signal.raise_signal, signal.SIGKILL, r"\(signal 9\), or was killed, .*memory"),
        (os._exit, 3, r"its process ended \(status 3\)"),
    ],
)
def test_a_crash_costs_what_was_running(pool, function, argument, reason):
    sent = [pool.submit(function, argument) if i == 3 else pool.submit(abs, -i) for i in range(8)]
    for i, future in enumerate(sent):
        if i == 3:
            with pytest.raises(UserError, match=reason):
                future.result()
        else:
            assert future.result() == i


def test_one_killed_from_outside_is_replaced(pool):
    future = one_that_sleeps(pool)
    (victim,) = pool.pids
    os.kill(victim, signal.SIGKILL)
    with pytest.raises(UserError, match="signal 9"):
        future.result()
    assert victim not in pool.pids


def test_one_that_died_while_idle_costs_nothing():
    pool = ProcessPool(1, "vjepa-test")
    first = pool.submit(os.getpid).result()
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: not is_there(first))
    second = pool.submit(os.getpid).result()
    assert second != first and pool.pids == [second]
    pool.close()


def test_one_that_is_late_is_killed():
    pool = ProcessPool(1, "vjepa-test", seconds=0.3)
    pool.submit(os.getpid, seconds=60).result()
    (late,) = pool.pids
    hanging = [pool.submit(time.sleep, 600), pool.submit(time.sleep, 600, seconds=0.6)]
    fine = pool.submit(abs, -7, seconds=60)
    for future, limit in zip(hanging, ("0.3", "0.6"), strict=True):
        with pytest.raises(UserError, match=f"takes more than {limit} s"):
            future.result()
    assert fine.result() == 7
    assert not is_there(late)
    pool.close()


def test_close_waits_for_no_task_and_leaves_nobody(pool):
    running = [one_that_sleeps(pool), pool.submit(time.sleep, 600)]
    waiting = pool.submit(time.sleep, 600)
    wait_until(lambda: len(pool.pids) == 2)
    pids = pool.pids
    pool.close()
    pool.close()
    assert not any(map(is_there, pids)) and not pool.pids
    for future in (*running, waiting, pool.submit(abs, 1)):
        with pytest.raises(CancelledError):
            future.result()


def test_a_server_that_was_killed_is_started_again(pool):
    server = fork_server()
    first = pool.submit(os.getpid).result()
    parent = parent_of(first)
    os.kill(parent, signal.SIGKILL)
    wait_until(lambda: not is_there(parent))
    for _ in range(2):
        with pytest.raises(UserError, match="process ended"):
            pool.submit(os._exit, 1).result()
    assert pool.submit(abs, -3).result() == 3
    assert fork_server() is not server


# A user's script as users write them: nothing guards it, and a module beside it has a bad name.
# (A shell's background jobs ignore SIGINT, and what they start does; here it is to interrupt.)
SCRIPT = """
import signal, sys, time
from vjepa_fast.data.workers.process_pool import ProcessPool
signal.signal(signal.SIGINT, signal.default_int_handler)
print("started", flush=True)
pool = ProcessPool(2, "vjepa-test")
futures = [pool.submit(time.sleep, float(sys.argv[1])) for _ in range(2)]
while len(pool.pids) < 2:
    time.sleep(0.01)
print(*pool.pids, flush=True)
for future in futures:
    future.result()
print("done", flush=True)
"""


def start_script(tmp_path, seconds):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    return subprocess.Popen(
        [sys.executable, script, str(seconds)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_a_script_needs_no_guard_and_leaves_nobody(tmp_path):
    with start_script(tmp_path, 0) as script:
        out, errors = script.communicate(timeout=600)
    started, pids, done = out.splitlines()
    assert (started, done, errors, script.returncode) == ("started", "done", "", 0)
    wait_until(lambda: not any(is_there(pid) for pid in pids.split()))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_their_parent(tmp_path, how):
    with start_script(tmp_path, 600) as script:
        assert script.stdout.readline() == "started\n"
        pids = script.stdout.readline().split()
        assert len(pids) == 2 and all(map(is_there, pids))
        parents = {
            Path(f"/proc/{pid}/status").read_text().split("PPid:")[1].split()[0] for pid in pids
        }
        os.killpg(script.pid, how)  # as Ctrl-C does: the whole group
        _, errors = script.communicate(timeout=600)
    assert errors.count("Traceback") == (how == signal.SIGINT)  # its own
    wait_until(lambda: not any(map(is_there, (*pids, *parents))))


def test_pixels_are_those_of_decoding_here(manifest):
    planner = planned(manifest)
    decoder = PyavDecoder(planner.entries, 40, torch.device("cpu"), 2)
    batches = [range(i, i + 3) for i in range(0, 12, 3)]
    with ClipLoader(planner, batches, decoder, 2, BadClips()) as loader:
        found = list(loader)
    for batch, ids in zip(found, batches, strict=True):
        assert batch.sample_ids.tolist() == list(ids)
        for plan, clip in zip(planner.plan(ids), batch.video, strict=True):
            assert torch.equal(clip, decode_clip(plan, planner.entries[plan.video], 40))


def test_kill_nine_in_the_midst_of_a_batch_costs_one_clip(manifest, tmp_path):
    """The clip is replaced and listed with the reason; all others are what they were."""
    planner = planned(manifest)
    whole = PyavDecoder(planner.entries, 40, torch.device("cpu"), 2)
    plans = planner.plan(range(8))
    expected, _ = whole.collect(plans, whole.submit(plans))
    whole.close()
    decoder = PyavDecoder(planner.entries, 40, torch.device("cpu"), 1)
    blocked = one_that_sleeps(decoder.pool)
    submitted = [blocked, *decoder.submit(plans[1:])]
    os.kill(decoder.pool.pids[0], signal.SIGKILL)
    video, failures = decoder.collect(plans, submitted)
    decoder.close()
    assert list(failures) == [0]
    assert plans[0].path in failures[0] and "signal 9" in failures[0]
    assert torch.equal(video[1:], expected[1:])


def test_a_kill_costs_a_run_one_clip_at_most(manifest, tmp_path):
    """Whatever clip is hit is replaced and listed, and the rest are what they were."""
    planner = planned(manifest)
    batches = [range(i, i + 4) for i in range(0, 160, 4)]
    decoder = PyavDecoder(planner.entries, 24, torch.device("cpu"), 2)
    log, found, kills = tmp_path / "bad.jsonl", [], 0
    with ClipLoader(planner, batches, decoder, 2, BadClips(log, max_fraction=1.0)) as loader:
        for batch in loader:
            found.append(batch)
            if len(found) % 8 == 1:
                os.kill(decoder.pool.pids[0], signal.SIGKILL)
                kills += 1
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    assert kills == 5 and len(rows) <= kills
    assert all("signal 9" in row["reason"] for row in rows)
    hit = {row["sample_id"] for row in rows}
    assert [i for batch in found for i in batch.sample_ids.tolist()] == list(range(160))
    for batch in found:
        for plan, clip in zip(planner.plan(batch.sample_ids.tolist()), batch.video, strict=True):
            if plan.sample_id not in hit:
                assert torch.equal(clip, decode_clip(plan, planner.entries[plan.video], 24))
