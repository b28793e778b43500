"""A clip that cannot be decoded costs itself only, whatever is wrong and whichever loader runs."""

import contextlib
import json
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers import videos
from vjepa_fast.config import parse_config
from vjepa_fast.data import bad_clips as replace_module
from vjepa_fast.data.bad_clips import BadClips
from vjepa_fast.data.decode import dali as dali_module
from vjepa_fast.data.decode.cut_clip import cut_clip
from vjepa_fast.data.decode.dali import DaliDecoder
from vjepa_fast.data.decode.pyav import PyavDecoder
from vjepa_fast.data.loader import ClipLoader, make_loader
from vjepa_fast.data.manifest.files import read_manifest, write_manifest
from vjepa_fast.data.plan.clip_plan import ClipPlan
from vjepa_fast.data.plan.crops import Augment
from vjepa_fast.data.plan.planner import ClipPlanner
from vjepa_fast.data.workers import thread_pool
from vjepa_fast.data.workers.thread_pool import ThreadPool
from vjepa_fast.errors import UserError
from vjepa_fast.training.loop import pretrain

BACKENDS = ["dali", "pyav"]
DECODERS = {"dali": DaliDecoder, "pyav": PyavDecoder}
CPU = torch.device("cpu")


@pytest.fixture
def manifest(tmp_path):
    """Eight VP9 videos of 24 frames; video i shows i in a column of its own."""
    paths = []
    for i in range(8):
        pictures = [videos.numbered(8 * i + k % 8) for k in range(24)]
        paths.append(videos.write_video(tmp_path / f"{i}.webm", pictures, "vp9"))
    yield videos.manifest_of(tmp_path, paths)
    for path in filter(Path.is_fifo, paths):
        while any(thread.name.startswith("vjepa-") for thread in threading.enumerate()):
            with contextlib.suppress(OSError):  # nobody is about to open it just now
                os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
            time.sleep(0.01)


def planned(manifest, fps=None):
    """Whole pictures of training clips, so that the numbers can be read."""
    augment = Augment(area=(1.0, 1.0), aspect_ratio=(64 / 48, 64 / 48), flip=False)
    return ClipPlanner(
        [read_manifest(manifest)], num_frames=4, frame_step=2, augment=augment, seed=3, fps=fps
    )


def place_of(video):
    """Which video a clip is of."""
    (place,) = {number // 8 for number in videos.read_numbers(video)}
    return place


def spoil(manifest, places, how):
    """Make these videos unusable, behind the back of the manifest."""
    entries = list(read_manifest(manifest))
    for place in places:
        path = Path(entries[place].path)
        if how == "missing":
            path.unlink()
            continue
        if how == "changed":
            os.utime(path, ns=(1, 1))
            continue
        data = path.read_bytes()
        path.unlink()
        if how == "damaged":
            path.write_bytes(data[:200] + b"\xa5" * (len(data) - 200))
        elif how == "hanging":
            os.mkfifo(path)  # whoever opens it to read waits for a writer, for ever
        status = path.stat()
        pin = {"size_bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
        entries[place] = replace(entries[place], **pin)
    write_manifest(manifest, entries)


def load(planner, backend, batches, log=None, seconds=1.0, max_fraction=0.05):
    decoder = DECODERS[backend](planner.entries, 48, CPU, 2, seconds)
    with ClipLoader(planner, batches, decoder, 2, BadClips(log, max_fraction)) as loader:
        return list(loader)


def expected_videos(planner, ids, bad):
    """What each sample shows, from `plan_one` alone."""
    shown = []
    for sample in ids:
        attempt = 0
        while planner.plan_one(sample, attempt).video in bad:
            attempt += 1
        shown.append(planner.plan_one(sample, attempt).video)
    return shown


@pytest.mark.parametrize("how", ["missing", "changed", "damaged", "hanging"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_samples_are_replaced_as_planned_and_listed(manifest, tmp_path, backend, how):
    bad = {2, 5} if how != "hanging" else {2}
    spoil(manifest, bad, how)
    planner = planned(manifest)
    log = tmp_path / "bad.jsonl"
    batches = [range(i, i + 4) for i in range(0, 16, 4)]
    found = load(planner, backend, batches, log)

    expected = expected_videos(planner, range(16), bad)
    labels = torch.cat([batch.labels["place"] for batch in found]).tolist()
    assert labels == expected
    assert [place_of(clip.numpy()) for batch in found for clip in batch.video] == expected
    assert torch.cat([batch.sample_ids for batch in found]).tolist() == list(range(16))

    rows = [json.loads(line) for line in log.read_text().splitlines()]
    for row in rows:
        assert Path(row["path"]).stem in {str(place) for place in bad}
        assert row["path"] in row["reason"]
        attempts = [planner.plan_one(row["sample_id"], attempt).path for attempt in range(8)]
        assert row["replacement"] == attempts[attempts.index(row["path"]) + 1]
    hit = [plan.sample_id for plan in planner.plan(range(16)) if plan.video in bad]
    assert {row["sample_id"] for row in rows} == set(hit)
    assert len(hit) >= 2


@pytest.fixture
def timed(manifest):
    """The same videos, to be planned by their time stamps."""
    write_manifest(manifest, [replace(entry, vfr=True) for entry in read_manifest(manifest)])
    return manifest


@pytest.mark.parametrize("how", ["missing", "damaged", "hanging"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_where_no_time_stamps_can_be_read_the_sample_is_bad(timed, tmp_path, backend, how):
    spoil(timed, [2], how)
    log = tmp_path / "bad.jsonl"
    found = load(planned(timed, fps=12.5), backend, [range(4), range(4, 8)], log)
    expected = expected_videos(planned(timed), range(8), {2})
    assert torch.cat([batch.labels["place"] for batch in found]).tolist() == expected
    assert [place_of(clip.numpy()) for batch in found for clip in batch.video] == expected
    reason = {"missing": "missing", "damaged": "time stamps", "hanging": "takes more than 1 s"}
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert rows
    for row in rows:
        assert Path(row["path"]).stem == "2" and row["path"] in row["reason"]
        assert reason[how] in row["reason"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_time_stamps_that_never_come_do_not_keep_a_loader_from_closing(timed, monkeypatch, backend):
    monkeypatch.setattr(thread_pool, "_CLOSING_SECONDS", 0.2)
    spoil(timed, [2], "hanging")
    order = planned(timed).plan(range(8))
    (hanging,) = [plan.sample_id for plan in order if plan.video == 2]
    planner = planned(timed, fps=12.5)
    decoder = DECODERS[backend](planner.entries, 48, CPU, 2, 600.0)
    batches = [[(hanging + 1) % 8], [hanging]]
    loader = ClipLoader(planner, batches, decoder, 2, BadClips())
    next(loader)
    start = time.monotonic()
    loader.close()
    assert time.monotonic() - start < 60


def test_both_loaders_and_any_number_of_ranks_replace_alike(manifest):
    spoil(manifest, [1, 2, 5], "damaged")
    planner = planned(manifest)
    whole = load(planner, "dali", [range(12)])[0]
    assert whole.labels["place"].tolist() == expected_videos(planner, range(12), {1, 2, 5})
    (other,) = load(planner, "pyav", [range(12)])
    assert torch.equal(other.labels["place"], whole.labels["place"])
    assert (other.video.float() - whole.video.float()).abs().mean() < 1
    for world, backend in [(2, "dali"), (3, "pyav")]:
        size = 12 // world
        shares = [load(planner, backend, [range(r * size, r * size + size)]) for r in range(world)]
        assert torch.equal(
            torch.cat([share[0].labels["place"] for share in shares]), whole.labels["place"]
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_too_many_bad_samples_stop_the_run(manifest, backend):
    spoil(manifest, range(1, 8), "missing")
    with pytest.raises(UserError, match=r"data\.max_bad_fraction: found 2 of \d+ clips .*\.webm"):
        load(planned(manifest), backend, [range(8)], max_fraction=0.001)


@pytest.mark.parametrize("backend", BACKENDS)
def test_where_nothing_is_usable_the_run_stops_too(manifest, backend):
    spoil(manifest, range(8), "missing")
    with pytest.raises(UserError, match=r"data\.max_bad_fraction: found 51 of \d+ clips"):
        load(planned(manifest), backend, [range(8)])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_run_that_allows_any_share_ends_too_where_nothing_is_usable(manifest, backend):
    spoil(manifest, range(8), "missing")
    with pytest.raises(UserError, match=r"found all 8 videos .* unusable.*\.webm missing"):
        load(planned(manifest), backend, [range(8)], max_fraction=1.0)


def test_a_log_that_cannot_be_written_is_no_reason_to_stop(manifest, tmp_path, caplog):
    spoil(manifest, [2], "missing")
    planner = planned(manifest)
    (batch,) = load(planner, "pyav", [range(8)], tmp_path / "nowhere" / "bad.jsonl")
    assert batch.labels["place"].tolist() == expected_videos(planner, range(8), {2})
    assert "cannot write to" in caplog.text


def test_each_bad_video_is_named_once_on_the_screen(manifest, tmp_path, caplog):
    spoil(manifest, [2], "missing")
    log = tmp_path / "bad.jsonl"
    load(planned(manifest), "pyav", [range(24)], log)
    assert len(log.read_text().splitlines()) >= 3
    assert caplog.text.count("2.webm missing") == 1


def test_a_folder_that_moved_does_not_flood_the_screen(manifest, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(replace_module, "_SHOWN", 1)
    spoil(manifest, [2, 3, 5], "missing")
    log = tmp_path / "bad.jsonl"
    load(planned(manifest), "pyav", [range(24)], log)
    assert caplog.text.count("replaced by another clip") == 1
    assert caplog.text.count(f"more videos are replaced than are shown here, see {log}") == 1


def test_an_evaluation_stops_at_a_bad_video_with_its_reason(manifest):
    spoil(manifest, [2], "missing")
    planner = ClipPlanner.in_order(read_manifest(manifest), num_frames=4, frame_step=2)
    with pytest.raises(UserError, match=r"2\.webm missing"):
        list(make_loader(planner, [range(8)], 48))


def test_what_only_dali_cannot_decode_comes_from_pyav(manifest, monkeypatch, tmp_path, caplog):
    """A pipeline that fails, or hangs, on one file is built again; the file goes to PyAV, said
    once."""
    planner = planned(manifest)
    (untouched,) = load(planner, "dali", [range(16)])
    run, built = DaliDecoder._run, []

    def stumble(self, slot, plans, encoded):
        built.append(slot.pipeline is None)
        if any(plan.video == 2 for plan in plans):
            raise RuntimeError("DALI: unsupported")
        if any(plan.video == 3 for plan in plans):
            time.sleep(5)
        return run(self, slot, plans, encoded)

    monkeypatch.setattr(DaliDecoder, "_run", stumble)
    log = tmp_path / "bad.jsonl"
    found = load(planner, "dali", [range(i, i + 4) for i in range(0, 16, 4)], log)
    video = torch.cat([batch.video for batch in found])
    assert (video.float() - untouched.video.float()).abs().mean() < 1
    assert torch.equal(torch.cat([b.labels["place"] for b in found]), untouched.labels["place"])
    assert not log.exists()
    assert sum(built) >= 3
    said = [record.getMessage() for record in caplog.records]
    named = [Path(text.split()[3].strip(",")).stem for text in said if "DALI cannot" in text]
    assert sorted(named) == ["2", "3"]
    assert "unsupported" in caplog.text and "takes more than 1 s" in caplog.text
    deadline = time.monotonic() + 60  # those that were given up on come back and end
    while any(thread.name == "vjepa-dali" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_ffmpeg_that_crashes_beside_dali_costs_one_clip(manifest, tmp_path, monkeypatch):
    """What DALI leaves to PyAV is decoded in processes of its own; only then are there any."""
    h264 = videos.write_numbered(tmp_path, "h264", 24, "h264")
    paths = [entry.path for entry in read_manifest(manifest)]
    entries = read_manifest(videos.manifest_of(tmp_path, [*paths, h264]))
    decoder = DaliDecoder(entries, 48, CPU, 1)
    for_dali, for_pyav = (
        ClipPlan(0, entries[i].path, i, np.arange(4), (0.0, 0.0, 1.0, 1.0), False, {})
        for i in (1, 8)
    )
    expected, failures = decoder.collect([for_dali], decoder.submit([for_dali]))
    assert not failures and not decoder.pool.pids
    with monkeypatch.context() as patch:
        patch.setattr(dali_module, "decode_pixels", videos.crash)
        plans = [for_pyav, for_dali]
        video, failures = decoder.collect(plans, decoder.submit(plans))
    assert list(failures) == [0] and "FFmpeg crashed (signal 6)" in failures[0]
    assert torch.equal(video[1], expected[0])
    video, failures = decoder.collect([for_pyav], decoder.submit([for_pyav]))
    assert not failures and videos.read_numbers(video[0].numpy()) == [0, 1, 2, 3]
    decoder.close()
    assert not decoder.pool.pids


@pytest.mark.parametrize("at", ["build", "run"])
def test_a_dali_that_does_not_work_at_all_is_an_error(manifest, monkeypatch, at):
    def fail(*_, **__):
        raise RuntimeError("dlopen libnvcuvid.so failed")

    if at == "build":
        monkeypatch.setattr(dali_module, "_pipeline", fail)
        where = "to build its pipeline"
    else:
        monkeypatch.setattr(DaliDecoder, "_run", fail)
        where = "on the first 8 videos that PyAV decodes"
    message = rf'DALI fails {where} \(dlopen libnvcuvid\.so failed\).*set data.backend to "pyav"'
    with pytest.raises(UserError, match=message):
        load(planned(manifest), "dali", [range(i, i + 4) for i in range(0, 16, 4)])


def test_a_batch_may_take_as_long_as_its_clips_one_by_one(manifest, monkeypatch, caplog):
    run = DaliDecoder._run

    def slow(self, slot, plans, encoded):
        time.sleep(0.4 * len(plans))
        return run(self, slot, plans, encoded)

    monkeypatch.setattr(DaliDecoder, "_run", slow)
    (batch,) = load(planned(manifest), "dali", [range(4)])
    assert len(batch.video) == 4
    assert not caplog.records


def test_of_large_files_only_parts_enter_memory(manifest, monkeypatch, caplog):
    """PyAV decodes those from which nothing small enough can be cut out, said once."""
    planner = planned(manifest)
    (expected,) = load(planner, "dali", [range(8)])
    sizes = sorted(entry.size_bytes for entry in planner.entries)
    monkeypatch.setattr(dali_module, "LARGE_FILE", 0)
    monkeypatch.setattr(dali_module, "IN_MEMORY", sizes[3])
    read = []

    def cut(entry, frames, limit):
        assert limit == sizes[3]
        part = None if entry.size_bytes > sizes[4] else cut_clip(entry, frames, limit)
        if part is not None:
            read.append((part.content.size, entry.path))
        return part

    monkeypatch.setattr(dali_module, "cut_clip", cut)
    monkeypatch.setattr(dali_module, "read_entry", lambda e: pytest.fail(e.path))
    decoder = DaliDecoder(planner.entries, 48, CPU, 2)
    with ClipLoader(planner, [range(8), range(8)], decoder, 2, BadClips()) as loader:
        found, again = list(loader)
        left = loader.fallback
    assert {planner.entries[i].path for i in range(8)} == {path for _, path in read} | set(left)
    assert len(left) == 3 and max(size for size, _ in read) <= sizes[3] + 1000
    assert caplog.text.count("others like it from now on") == 1
    for batch in (found, again):
        assert torch.equal(batch.labels["place"], expected.labels["place"])
        assert (batch.video.float() - expected.video.float()).abs().mean() < 1


def test_threads_outlive_what_hangs():
    never = threading.Event()
    threads = ThreadPool(1, "vjepa-test", seconds=0.2)
    hanging = [threads.submit(never.wait) for _ in range(2)]
    fine = threads.submit(lambda: 7)
    for future in hanging:
        with pytest.raises(UserError, match=r"takes more than 0\.2 s"):
            threads.result(future)
    assert threads.result(fine) == 7
    left = [thread for thread in threading.enumerate() if thread.name == "vjepa-test"]
    threads.close()
    never.set()
    for thread in left:
        thread.join(10)
    assert len(left) == 3 and not any(thread.is_alive() for thread in left)


def test_threads_keep_to_the_limit_of_each_task():
    never = threading.Event()
    threads = ThreadPool(2, "vjepa-test", seconds=0.3)
    slow = threads.submit(time.sleep, 0.6, seconds=1.2)
    hanging = threads.submit(never.wait, seconds=0.6)
    with pytest.raises(UserError, match=r"takes more than 0\.6 s"):
        threads.result(hanging)
    assert threads.result(slow) is None
    threads.close()
    never.set()


def test_threads_hand_errors_on():
    threads = ThreadPool(2, "vjepa-test")
    with pytest.raises(KeyError, match="inside"):
        threads.result(threads.submit(lambda: {}["inside"]))
    threads.close()
    assert threads.submit(print).cancelled()


def test_a_run_goes_on_without_its_bad_videos(small_config, manifest, tmp_path):
    spoil(manifest, [2, 6], "damaged")
    data = {"manifests": [str(manifest)], "num_frames": 4, "crop_size": 32}
    run = pretrain(parse_config(small_config(data=data, optim={"steps": 4})))
    rows = [json.loads(line) for line in (run / "bad_videos.jsonl").read_text().splitlines()]
    assert {Path(row["path"]).stem for row in rows} == {"2", "6"}
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in metrics if "loss" in row]
    assert len(losses) == 4 and np.isfinite(losses).all()

    config = small_config(
        data=data | {"max_bad_fraction": 0.0}, optim={"steps": 4}, output=str(tmp_path / "strict")
    )
    with pytest.raises(UserError, match=r"data\.max_bad_fraction: found 1 of"):
        pretrain(parse_config(config))
