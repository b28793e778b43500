"""The loader: batches decoded ahead, in order, with either backend; how it ends."""

import logging
import threading
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from tests.data.loading import BACKENDS, Fixed, one, training
from tests.helpers import videos
from vjepa_fast.data import loader
from vjepa_fast.data.loader import make_loader
from vjepa_fast.data.manifest.files import read_manifest, write_manifest
from vjepa_fast.errors import UserError


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("vjepa-")]


def damage(manifest, index, packet=None):
    """Spoil a file behind the back of size and time stamp: half of it, or one packet's payload."""
    entries = list(read_manifest(manifest))
    path = Path(entries[index].path)
    data = bytearray(path.read_bytes())
    first, last = len(data) // 3, len(data) * 5 // 6
    if packet is not None:
        with av.open(str(path)) as container:
            found = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
        first, last = found[packet][0] + 12, sum(found[packet]) - 2
    data[first:last] = b"\xa5" * (last - first)
    path.write_bytes(data)
    entries[index] = replace(entries[index], mtime_ns=path.stat().st_mtime_ns)
    write_manifest(manifest, entries)
    return path


@pytest.mark.parametrize("backend", BACKENDS)
def test_batches_come_in_order_and_may_have_any_length(vp9, backend):
    planner = training(vp9)
    ids = [[3, 1], [4], [5, 6, 7], [8, 9]]
    batches = list(make_loader(planner, iter(ids), 24, backend, prefetch=3))
    assert [batch.sample_ids.tolist() for batch in batches] == ids
    for batch in batches:
        assert batch.video.shape == (len(batch.sample_ids), 6, 24, 24, 3)
        assert batch.video.dtype == torch.uint8 and batch.video.is_contiguous()
        plans = planner.plan(batch.sample_ids.tolist())
        assert batch.labels["index"].tolist() == [plan.labels["index"] for plan in plans]
        assert batch.labels["index"].dtype == batch.sample_ids.dtype == torch.int64


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_clip_is_the_same_in_whatever_batch_it_comes(vp9, backend):
    planner = training(vp9)
    whole = next(make_loader(planner, [range(12)], 24, backend)).video
    parts = list(make_loader(planner, [range(i, i + 3) for i in range(0, 12, 3)], 24, backend))
    assert torch.equal(torch.cat([part.video for part in parts]), whole)
    (resumed,) = make_loader(planner, [range(9, 12)], 24, backend)
    assert torch.equal(resumed.video, whole[9:])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_stays_valid_while_others_are_decoded(vp9, backend):
    batches = make_loader(training(vp9), [range(i, i + 4) for i in range(10)], 24, backend)
    first = next(batches)
    copy = first.video.clone()
    rest = list(batches)
    assert torch.equal(first.video, copy)
    assert len(rest) == 9


def test_decoding_runs_ahead_by_prefetch_batches(vp9):
    taken = []

    def ids():
        for i in range(10):
            taken.append(i)
            yield [i]

    with make_loader(training(vp9), ids(), 24, "pyav", prefetch=3) as batches:
        next(batches)
        assert taken == [0, 1, 2, 3]
        next(batches)
        assert taken == [0, 1, 2, 3, 4]


def test_pyav_decodes_what_dali_cannot(tmp_path, caplog):
    paths = [videos.write_numbered(tmp_path, codec, 40, codec) for codec in ("vp9", "h264", "vp8")]
    planner = Fixed(videos.manifest_of(tmp_path, paths), [3, 17, 36])
    loader._log_once.cache_clear()
    with caplog.at_level(logging.INFO, "vjepa_fast"):
        for _ in range(2):
            with make_loader(planner, [[0, 1], [1], [2]], 48, "dali") as batches:
                assert batches.backend == "dali"
                assert batches.fallback == [str(paths[1])]
                shown = [videos.read_numbers(clip.numpy()) for b in batches for clip in b.video]
            assert shown == [[3, 17, 36]] * 4
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert f"PyAV decodes 1 of 3 videos: 1 h264, such as {paths[1]}" in record.getMessage()


def test_auto_takes_pyav_on_a_cpu_and_says_so_once(vp9, caplog):
    loader._log_once.cache_clear()
    with caplog.at_level(logging.INFO, "vjepa_fast"):
        for _ in range(2):
            with make_loader(training(vp9), [[0]], 24) as batches:
                assert batches.backend == "pyav"
                assert len(list(batches)) == 1
    (record,) = caplog.records
    assert "decoding with pyav on cpu: it takes less time" in record.getMessage()
    assert record.levelno == logging.INFO


# --- what goes wrong ---------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_changed_or_missing_file_is_rejected(tmp_path, backend):
    paths = [videos.write_numbered(tmp_path, "vp9", 12, f"{i}") for i in range(2)]
    planner = Fixed(videos.manifest_of(tmp_path, paths), [0, 1])
    videos.write_numbered(tmp_path, "vp9", 13, "1")
    batches = make_loader(planner, [[0], [1], [0]], 24, backend)
    assert next(batches).sample_ids.tolist() == [0]
    with pytest.raises(UserError, match=r"1\.webm changed since.*run `vjepa-fast index` again"):
        next(batches)
    assert not threads()
    assert list(batches) == []
    paths[1].unlink()
    with pytest.raises(UserError, match=r"1\.webm missing"):
        next(make_loader(planner, [[0, 1]], 24, backend))


@pytest.mark.parametrize("packet", [None, 37])  # of all, or of one that the last frame refers to
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_damaged_file_is_named(tmp_path, backend, packet):
    paths = [videos.write_numbered(tmp_path, "vp9", 40, f"{i}") for i in range(3)]
    manifest = videos.manifest_of(tmp_path, paths)
    path = damage(manifest, 1, packet)
    batches = make_loader(Fixed(manifest, [0, 39]), [[0, 1, 2]], 24, backend)
    with pytest.raises(UserError, match=rf"{path}: found "):
        next(batches)
    assert not threads()


def test_black_frames_of_a_good_video_are_no_damage(tmp_path):
    pictures = [np.zeros((48, 64, 3), np.uint8)] * 3 + [videos.numbered(i) for i in range(3, 6)]
    path = videos.write_video(tmp_path / "a.webm", pictures, "vp9", options={"lossless": "1"})
    video = one(Fixed(videos.manifest_of(tmp_path, [path]), [0, 2, 3, 5]), "dali")
    assert video[:2].max() == 0
    assert videos.read_numbers(video[2:]) == [3, 5]


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_error_in_the_batches_reaches_the_consumer(vp9, backend):
    def ids():
        yield [0]
        raise KeyError("from the sampler")

    batches = make_loader(training(vp9), ids(), 24, backend, prefetch=1)
    with pytest.raises(KeyError, match="from the sampler"):
        list(batches)
    assert not threads()


@pytest.mark.parametrize("backend", BACKENDS)
def test_closing_early_stops_the_threads(vp9, backend):
    endless = ([i, i + 1] for i in range(10**9))
    batches = make_loader(training(vp9), endless, 24, backend, prefetch=4)
    next(batches)
    batches.close()
    batches.close()
    assert not threads()
    assert list(batches) == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropping_a_loader_stops_the_threads(vp9, backend):
    for _ in make_loader(training(vp9), ([i] for i in range(10**9)), 24, backend):
        break
    assert not threads()
