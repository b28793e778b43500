"""A clip that cannot be decoded costs no other clip, whatever its fault and with either loader."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.loading import BACKENDS, CPU, DECODERS, load, planned
from tests.helpers import videos
from vjepa_fast.config import parse_config
from vjepa_fast.data import bad_clips
from vjepa_fast.data.bad_clips import BadClips
from vjepa_fast.data.loader import ClipLoader, make_loader
from vjepa_fast.data.manifest.files import read_manifest, write_manifest
from vjepa_fast.data.plan.planner import ClipPlanner
from vjepa_fast.data.workers import thread_pool
from vjepa_fast.errors import UserError
from vjepa_fast.training.loop import pretrain


def video_of(video):
    """Which video a clip is of."""
    (index,) = {number // 8 for number in videos.read_numbers(video)}
    return index


def spoil(manifest, indices, how):
    """Make these videos unusable, behind the back of the manifest."""
    entries = list(read_manifest(manifest))
    for i in indices:
        path = Path(entries[i].path)
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
            os.mkfifo(path)  # a reader waits for a writer forever
        status = path.stat()
        pin = {"size_bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
        entries[i] = replace(entries[i], **pin)
    write_manifest(manifest, entries)


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
def test_bad_samples_are_replaced_as_planned_and_listed(eight_videos, tmp_path, backend, how):
    bad = {2, 5} if how != "hanging" else {2}
    spoil(eight_videos, bad, how)
    planner = planned(eight_videos)
    log = tmp_path / "bad.jsonl"
    batches = [range(i, i + 4) for i in range(0, 16, 4)]
    found = load(planner, backend, batches, log, 4.0 if how == "hanging" else 60.0)

    expected = expected_videos(planner, range(16), bad)
    labels = torch.cat([batch.labels["index"] for batch in found]).tolist()
    assert labels == expected
    assert [video_of(clip.numpy()) for batch in found for clip in batch.video] == expected
    assert torch.cat([batch.sample_ids for batch in found]).tolist() == list(range(16))

    rows = [json.loads(line) for line in log.read_text().splitlines()]
    for row in rows:
        assert Path(row["path"]).stem in {str(video) for video in bad}
        assert row["path"] in row["reason"]
        attempts = [planner.plan_one(row["sample_id"], attempt).path for attempt in range(8)]
        assert row["replacement"] == attempts[attempts.index(row["path"]) + 1]
    hit = [plan.sample_id for plan in planner.plan(range(16)) if plan.video in bad]
    assert {row["sample_id"] for row in rows} == set(hit)
    assert len(hit) >= 2


@pytest.fixture
def timed(eight_videos):
    """The same videos, to be planned by their time stamps."""
    write_manifest(
        eight_videos, [replace(entry, vfr=True) for entry in read_manifest(eight_videos)]
    )
    return eight_videos


@pytest.mark.parametrize("how", ["missing", "damaged", "hanging"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_where_no_time_stamps_can_be_read_the_sample_is_bad(timed, tmp_path, backend, how):
    spoil(timed, [2], how)
    log = tmp_path / "bad.jsonl"
    batches, limit = [range(4), range(4, 8)], 4.0 if how == "hanging" else 60.0
    found = load(planned(timed, fps=12.5), backend, batches, log, limit)
    expected = expected_videos(planned(timed), range(8), {2})
    assert torch.cat([batch.labels["index"] for batch in found]).tolist() == expected
    assert [video_of(clip.numpy()) for batch in found for clip in batch.video] == expected
    reason = {"missing": "missing", "damaged": "time stamps", "hanging": "takes more than 4 s"}
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
    assert time.monotonic() - start < 300  # half of the limit


def test_both_loaders_and_any_number_of_ranks_replace_alike(eight_videos):
    spoil(eight_videos, [1, 2, 5], "damaged")
    planner = planned(eight_videos)
    whole = load(planner, "dali", [range(12)])[0]
    assert whole.labels["index"].tolist() == expected_videos(planner, range(12), {1, 2, 5})
    (other,) = load(planner, "pyav", [range(12)])
    assert torch.equal(other.labels["index"], whole.labels["index"])
    assert (other.video.float() - whole.video.float()).abs().mean() < 1
    for world, backend in [(2, "dali"), (3, "pyav")]:
        size = 12 // world
        parts = [load(planner, backend, [range(r * size, r * size + size)]) for r in range(world)]
        assert torch.equal(
            torch.cat([part[0].labels["index"] for part in parts]), whole.labels["index"]
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_too_many_bad_samples_stop_the_run(eight_videos, backend):
    spoil(eight_videos, range(1, 8), "missing")
    with pytest.raises(UserError, match=r"data\.max_bad_fraction: found 2 of \d+ clips .*\.webm"):
        load(planned(eight_videos), backend, [range(8)], max_fraction=0.001)


@pytest.mark.parametrize("backend", BACKENDS)
def test_where_nothing_is_usable_the_run_stops_too(eight_videos, backend):
    spoil(eight_videos, range(8), "missing")
    with pytest.raises(UserError, match=r"data\.max_bad_fraction: found 51 of \d+ clips"):
        load(planned(eight_videos), backend, [range(8)])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_run_that_allows_any_fraction_ends_too_where_nothing_is_usable(eight_videos, backend):
    spoil(eight_videos, range(8), "missing")
    with pytest.raises(UserError, match=r"found all 8 videos .* unusable.*\.webm missing"):
        load(planned(eight_videos), backend, [range(8)], max_fraction=1.0)


def test_a_log_that_cannot_be_written_is_no_reason_to_stop(eight_videos, tmp_path, caplog):
    spoil(eight_videos, [2], "missing")
    planner = planned(eight_videos)
    (batch,) = load(planner, "pyav", [range(8)], tmp_path / "nowhere" / "bad.jsonl")
    assert batch.labels["index"].tolist() == expected_videos(planner, range(8), {2})
    assert "cannot write to" in caplog.text


def test_each_bad_video_is_named_once_on_the_screen(eight_videos, tmp_path, caplog):
    spoil(eight_videos, [2], "missing")
    log = tmp_path / "bad.jsonl"
    load(planned(eight_videos), "pyav", [range(24)], log)
    assert len(log.read_text().splitlines()) >= 3
    assert caplog.text.count("2.webm missing") == 1


def test_a_folder_that_moved_does_not_flood_the_screen(eight_videos, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(bad_clips, "_SHOWN", 1)
    spoil(eight_videos, [2, 3, 5], "missing")
    log = tmp_path / "bad.jsonl"
    load(planned(eight_videos), "pyav", [range(24)], log)
    assert caplog.text.count("replaced by another one") == 1
    assert caplog.text.count(f"further replaced videos are not shown here, see {log}") == 1


def test_an_evaluation_stops_at_a_bad_video_with_its_reason(eight_videos):
    spoil(eight_videos, [2], "missing")
    planner = ClipPlanner.in_order(read_manifest(eight_videos), num_frames=4, frame_step=2)
    with pytest.raises(UserError, match=r"2\.webm missing"):
        list(make_loader(planner, [range(8)], 48))


def test_a_run_continues_without_its_bad_videos(small_config, eight_videos, tmp_path):
    spoil(eight_videos, [2, 6], "damaged")
    data = {"manifests": [str(eight_videos)], "num_frames": 4, "crop_size": 32}
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
