"""Where DALI fails, times out or would need too much memory, PyAV decodes."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.loading import CPU, load, planned
from tests.helpers import videos
from vjepa_fast.data.bad_clips import BadClips
from vjepa_fast.data.decode import dali as dali_module
from vjepa_fast.data.decode.cut_clip import cut_clip
from vjepa_fast.data.decode.dali import DaliDecoder
from vjepa_fast.data.loader import ClipLoader
from vjepa_fast.data.manifest.files import read_manifest
from vjepa_fast.data.plan.clip_plan import ClipPlan
from vjepa_fast.errors import UserError


def test_what_only_dali_cannot_decode_comes_from_pyav(eight_videos, monkeypatch, tmp_path, caplog):
    """A pipeline that fails, or hangs, on one file is built again; PyAV decodes the
    file, which is logged once."""
    planner, before = planned(eight_videos), threading.enumerate()
    (untouched,) = load(planner, "dali", [range(16)])
    run, attempt, built, ended = DaliDecoder._run, DaliDecoder._try, [], threading.Event()

    def fail(self, slot, plans, encoded):
        built.append(slot.pipeline is None)
        if any(plan.video == 2 for plan in plans):
            raise RuntimeError("DALI: unsupported")
        if any(plan.video == 3 for plan in plans):
            ended.wait()
            raise RuntimeError("too late to be heard")
        return run(self, slot, plans, encoded)

    def limited(self, clips):  # a machine may be slow: only what hangs runs out of time
        self._seconds = 3.0 if any(clip.plan.video == 3 for clip in clips) else 600.0
        return attempt(self, clips)

    monkeypatch.setattr(DaliDecoder, "_run", fail)
    monkeypatch.setattr(DaliDecoder, "_try", limited)
    log = tmp_path / "bad.jsonl"
    found = load(planner, "dali", [range(i, i + 2) for i in range(0, 16, 2)], log, seconds=600.0)
    ended.set()
    video = torch.cat([batch.video for batch in found])
    assert (video.float() - untouched.video.float()).abs().mean() < 1
    assert torch.equal(torch.cat([b.labels["index"] for b in found]), untouched.labels["index"])
    assert not log.exists()
    assert sum(built) >= 3
    said = [record.getMessage() for record in caplog.records]
    named = [Path(text.split()[3].strip(",")).stem for text in said if "DALI cannot" in text]
    assert sorted(named) == ["2", "3"]
    assert "unsupported" in caplog.text and "takes more than 3 s" in caplog.text
    deadline = time.monotonic() + 60  # for the abandoned threads to end
    while any(t.name == "vjepa-dali" and t not in before for t in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_ffmpeg_that_crashes_beside_dali_costs_one_clip(eight_videos, tmp_path, monkeypatch):
    """What DALI leaves to PyAV is decoded in processes of its own; only then are there any."""
    h264 = videos.write_numbered(tmp_path, "h264", 24, "h264")
    paths = [entry.path for entry in read_manifest(eight_videos)]
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
def test_a_dali_that_does_not_work_at_all_is_an_error(eight_videos, monkeypatch, at):
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
        load(planned(eight_videos), "dali", [range(i, i + 4) for i in range(0, 16, 4)])


def test_a_batch_may_take_as_long_as_its_clips_one_by_one(eight_videos, monkeypatch, caplog):
    run = DaliDecoder._run

    def slow(self, slot, plans, encoded):
        time.sleep(0.7 * len(plans))
        return run(self, slot, plans, encoded)

    monkeypatch.setattr(DaliDecoder, "_run", slow)
    (batch,) = load(planned(eight_videos), "dali", [range(4)], seconds=2.5)
    assert len(batch.video) == 4
    assert not caplog.records


def test_of_large_files_only_parts_enter_memory(eight_videos, monkeypatch, caplog):
    """PyAV decodes those from which nothing small enough can be cut out; logged once."""
    planner = planned(eight_videos)
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
    assert caplog.text.count("similar files from now on") == 1
    for batch in (found, again):
        assert torch.equal(batch.labels["index"], expected.labels["index"])
        assert (batch.video.float() - expected.video.float()).abs().mean() < 1
