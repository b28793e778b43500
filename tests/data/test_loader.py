"""Both loaders decode exactly the planned frames, boxes and flips, ahead of the consumer."""

import logging
import sys
import threading
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from tests.helpers import videos
from vjepa_fast.data import loader
from vjepa_fast.data.decode import dali
from vjepa_fast.data.decode.backend import choose_backend
from vjepa_fast.data.decode.cut_clip import cut_clip
from vjepa_fast.data.decode.rotation import as_flips, turn
from vjepa_fast.data.loader import make_loader
from vjepa_fast.data.manifest.files import read_manifest, write_manifest
from vjepa_fast.data.plan.crops import Augment
from vjepa_fast.data.plan.planner import ClipPlanner
from vjepa_fast.errors import UserError

BACKENDS = ["dali", "pyav"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(scope="module")
def vp9(folder):
    """A manifest of five VP9 files of 20 to 100 numbered frames; key frames every 12."""
    paths = [videos.write_numbered(folder, "vp9", 20 * i, f"vp9_{i}") for i in range(1, 6)]
    return videos.manifest_of(folder, paths, "vp9.csv")


class Fixed(ClipPlanner):
    """Plans frames, crop and flip as given; sample id i is video i."""

    def __init__(self, manifest, frames, crop=(0.0, 0.0, 1.0, 1.0), flip=False):
        super().__init__(
            [read_manifest(manifest)], num_frames=len(frames), frame_step=1, augment=None
        )
        self._order = None
        self._fixed = {"frames": np.array(frames), "crop": crop, "flip": flip}

    def plan(self, sample_ids):
        return [replace(plan, **self._fixed) for plan in super().plan(sample_ids)]


def training(manifest, **changes):
    settings = {"num_frames": 6, "frame_step": 2, "augment": Augment(), "seed": 1}
    return ClipPlanner([read_manifest(manifest)], **settings | changes)


def one(planner, backend, size=48, sample_id=0):
    with make_loader(planner, [[sample_id]], size, backend) as batches:
        return next(batches).video[0].numpy()


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("vjepa-")]


def damage(manifest, place, packet=None):
    """Spoil a file behind the back of size and time stamp: half of it, or one packet's payload."""
    entries = list(read_manifest(manifest))
    path = Path(entries[place].path)
    data = bytearray(path.read_bytes())
    first, last = len(data) // 3, len(data) * 5 // 6
    if packet is not None:
        with av.open(str(path)) as container:
            found = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
        first, last = found[packet][0] + 12, sum(found[packet]) - 2
    data[first:last] = b"\xa5" * (last - first)
    path.write_bytes(data)
    entries[place] = replace(entries[place], mtime_ns=path.stat().st_mtime_ns)
    write_manifest(manifest, entries)
    return path


# --- what is decoded ---------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "frames",
    [
        [0, 1, 2, 3, 4, 5],
        [0, 7, 11, 12, 13, 99],
        [33, 36, 40, 47, 48, 49],
        [60, 61, 71, 72, 73, 98],
        [95, 98, 99, 99, 99, 99],
    ],
    ids=str,
)
def test_exactly_the_planned_frames_are_decoded(vp9, backend, frames):
    video = one(Fixed(vp9, frames), backend, sample_id=4)
    assert video.dtype == np.uint8 and video.shape == (6, 48, 48, 3)
    assert videos.read_numbers(video) == frames


@pytest.mark.parametrize("frames", [[0, 1, 2, 3], [33, 47, 48, 89], [89, 89, 89, 89]], ids=str)
@pytest.mark.parametrize(
    ("codec", "extension"),
    [("h264", "mp4"), ("h264", "ts"), ("h264", "mkv"), ("mpeg4", "avi"), ("vp8", "webm")],
)
def test_pyav_decodes_every_codec(tmp_path, codec, extension, frames):
    path = tmp_path / f"video.{extension}"
    options = {"bf": "2"} if codec in ("h264", "mpeg4") else None  # B-frames: stored out of order
    videos.write_video(path, (videos.numbered(i) for i in range(90)), codec, options=options)
    planner = Fixed(videos.manifest_of(tmp_path, [path]), frames)
    with make_loader(planner, [[0]], 48) as batches:
        assert batches.backend == ("dali" if codec == "vp8" else "pyav")
    assert videos.read_numbers(one(planner, "pyav")) == frames


@pytest.mark.parametrize("codec", ["vp9", "vp8", "mjpeg"])
def test_both_loaders_give_the_same_clips(tmp_path, codec):
    paths = [videos.write_numbered(tmp_path, codec, 30, f"{codec}_{i}") for i in range(3)]
    planner = training(videos.manifest_of(tmp_path, paths))
    ids = [range(12), range(12, 24)]
    batches = [list(make_loader(planner, ids, 40, backend)) for backend in BACKENDS]
    for by_dali, by_pyav in zip(*batches, strict=True):
        difference = (by_dali.video.float() - by_pyav.video.float()).abs()
        assert difference.mean() < 1
        assert difference.flatten(1).mean(1).max() < 2
        assert by_dali.labels.keys() == by_pyav.labels.keys() == {"place"}
        assert torch.equal(by_dali.labels["place"], by_pyav.labels["place"])
        assert torch.equal(by_dali.sample_ids, by_pyav.sample_ids)


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_resizing_the_pixels_are_what_was_drawn(tmp_path, backend):
    picture = videos.numbered(5)
    picture[:] = picture.mean(-1, keepdims=True)  # grey: no colour is lost
    path = videos.write_video(tmp_path / "a.avi", [picture] * 3, "mjpeg", options={"q": "2"})
    box = (0.0, 0.125, 1.0, 0.75)
    video = one(Fixed(videos.manifest_of(tmp_path, [path]), [0, 1, 2], box), backend)
    assert np.abs(video[:, 26:].astype(float) - picture[26:, 8:56]).mean() < 1.5


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_crop_and_flip_land_where_planned(tmp_path, backend, flip):
    rows, columns = np.mgrid[:96, :128]
    gradient = np.stack([2 * columns, 2 * rows, np.full_like(rows, 90)], -1).astype(np.uint8)
    path = videos.write_video(tmp_path / "a.webm", [gradient] * 3, "vp9")
    top, left, height, width = 20, 30, 60, 40
    box = (top / 96, left / 128, height / 96, width / 128)
    video = one(Fixed(videos.manifest_of(tmp_path, [path]), [0, 2], box, flip), backend, size=20)
    x = left + (np.arange(20) + 0.5) * width / 20 - 0.5
    y = top + (np.arange(20) + 0.5) * height / 20 - 0.5
    expected = np.stack(np.broadcast_arrays(2 * x, 2 * y[:, None], 90), -1)
    if flip:
        expected = expected[:, ::-1]
    inner = np.abs(video[:, 1:-1, 1:-1] - expected[1:-1, 1:-1])
    assert inner.mean() < 2 and inner.max() < 8  # a shift by one source pixel would be 2 everywhere
    assert abs((video[:, 1:-1, 1:-1, :2] - expected[1:-1, 1:-1, :2]).mean()) < 1


MATRICES = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("rotation", MATRICES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_pictures_that_are_stored_lying_are_turned(tmp_path, backend, rotation, flip):
    rows, columns = np.mgrid[:96, :128]
    gradient = np.stack([2 * columns, 2 * rows, np.full_like(rows, 90)], -1).astype(np.uint8)
    path = videos.write_video(tmp_path / "a.mp4", [gradient] * 50, "vp9")
    path.write_bytes(videos.with_matrix(path.read_bytes(), MATRICES[rotation]))
    manifest = videos.manifest_of(tmp_path, [path])
    upright = np.rot90(gradient.astype(float), -rotation // 90)
    (entry,) = read_manifest(manifest)
    assert (entry.rotation, entry.height, entry.width) == (rotation, *upright.shape[:2])

    top, left, height, width = 20, 30, 60, 40
    box = (top / entry.height, left / entry.width, height / entry.height, width / entry.width)
    x = left + (np.arange(20) + 0.5) * width / 20 - 0.5
    y = (top + (np.arange(20) + 0.5) * height / 20 - 0.5)[:, None]
    down, right = upright[1, 0] - upright[0, 0], upright[0, 1] - upright[0, 0]
    expected = upright[0, 0] + y[..., None] * down + x[:, None] * right
    if flip:
        expected = expected[:, ::-1]
    for frames in ([0, 2], [40, 45]):  # from the whole file, and from a part of it
        video = one(Fixed(manifest, frames, box, flip), backend, size=20)
        inner = np.abs(video[:, 1:-1, 1:-1] - expected[1:-1, 1:-1])
        assert inner.mean() < 2 and inner.max() < 8


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("rotation", [None, 0, *MATRICES])
def test_flips_and_a_transpose_turn_pictures_upright(rotation, mirrored):
    stored = np.arange(2 * 4 * 4 * 3).reshape(2, 4, 4, 3)
    horizontal, vertical, transposed = as_flips(rotation, mirrored)
    found = stored[:, :: -1 if vertical else 1, :: -1 if horizontal else 1]
    if transposed:
        found = found.swapaxes(1, 2)
    expected = turn(stored, rotation)
    assert np.array_equal(found, expected[:, :, ::-1] if mirrored else expected)


def test_lying_and_standing_pictures_share_a_batch(tmp_path):
    pictures = [videos.numbered(i) for i in range(6)]
    paths = [videos.write_video(tmp_path / f"{i}.mp4", pictures, "vp9") for i in range(4)]
    for path, matrix in zip(paths[1:], MATRICES.values(), strict=True):
        path.write_bytes(videos.with_matrix(path.read_bytes(), matrix))
    planner = Fixed(videos.manifest_of(tmp_path, paths), [1, 5])
    by_dali, by_pyav = (next(make_loader(planner, [range(4)], 48, b)).video for b in BACKENDS)
    assert (by_dali.float() - by_pyav.float()).abs().flatten(1).mean(1).max() < 1
    video = by_dali.numpy()
    for i in range(4):
        assert videos.read_numbers(np.rot90(video[i], i, axes=(1, 2))) == [1, 5]


@pytest.mark.parametrize("name", ["vp9.webm", "vp9.mp4", "vp8.webm"])
def test_dali_shows_the_same_of_a_part_and_of_the_whole(tmp_path, monkeypatch, name):
    pictures = (videos.numbered(i) for i in range(120))
    path = videos.write_video(tmp_path / name, pictures, Path(name).stem)
    manifest = videos.manifest_of(tmp_path, [path])
    windows = [[i, i + 1, i + 5, i + 5, i + 13] for i in (32, 47, 48, 49, 106)]
    parts = []
    monkeypatch.setattr(dali, "cut_clip", lambda *a: parts.append(cut_clip(*a)) or parts[-1])
    clips = [one(Fixed(manifest, frames), "dali") for frames in windows]
    assert [videos.read_numbers(clip) for clip in clips] == windows
    assert len(parts) == 5
    assert max(part.content.size for part in parts) < path.stat().st_size / 2
    monkeypatch.setattr(dali, "FAR_FROM_START", 1000)
    for frames, clip in zip(windows, clips, strict=True):
        assert np.array_equal(one(Fixed(manifest, frames), "dali"), clip)
    assert len(parts) == 5


# --- batches -----------------------------------------------------------------------------------


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
        assert batch.labels["place"].tolist() == [plan.labels["place"] for plan in plans]
        assert batch.labels["place"].dtype == batch.sample_ids.dtype == torch.int64


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


# --- which loader ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codecs", "device", "backend", "reason"),
    [
        (["vp9", "vp8", "mjpeg"], "cpu", "dali", "it decodes every video"),
        (["vp9", "h264"], "cpu", "dali", "PyAV decodes 1 of 2 videos: 1 h264, such as "),
        (
            ["vp9", "h264", "hevc", "h264"],
            "cpu",
            "pyav",
            "DALI decodes only 1 of 4 videos on cpu, the others are 2 h264, 1 hevc, such as ",
        ),
        (["h264"], "cpu", "pyav", "DALI decodes none of the videos on cpu: 1 h264, such as "),
        (["vp9", "h264", "hevc"], "cuda", "dali", "it decodes every video"),
        (["prores"], "cuda", "pyav", "DALI decodes none of the videos on cuda: 1 prores"),
    ],
)
def test_auto_takes_dali_for_half_of_the_videos_or_more(vp9, codecs, device, backend, reason):
    entry = replace(read_manifest(vp9)[0], width=320, height=240)
    entries = [replace(entry, codec=codec) for codec in codecs]
    name, why = choose_backend("auto", entries, torch.device(device))
    assert name == backend and reason in why
    assert choose_backend("pyav", entries, torch.device(device)) == ("pyav", "as configured")


def test_pictures_too_small_for_the_gpus_decoder_go_to_pyav(vp9):
    small = replace(read_manifest(vp9)[0], width=320, height=96)
    name, why = choose_backend("auto", [small], torch.device("cuda"))
    assert name == "pyav" and "1 vp9 smaller than the 128 px" in why and small.path in why
    assert choose_backend("auto", [small], CPU)[0] == "dali"
    large = replace(small, height=128)
    assert choose_backend("auto", [large], torch.device("cuda"))[0] == "dali"


def test_images_go_to_pyav(vp9):
    image = replace(read_manifest(vp9)[0], codec="mjpeg", frames=1)
    name, why = choose_backend("auto", [image], CPU)
    assert name == "pyav" and "1 images" in why
    assert choose_backend("auto", [replace(image, frames=2)], CPU)[0] == "dali"


def test_dali_is_refused_where_it_can_decode_nothing(vp9):
    entries = [replace(read_manifest(vp9)[0], codec="h264")]
    with pytest.raises(UserError, match=r"decodes none .* on cpu: 1 h264.*set data\.backend"):
        choose_backend("dali", entries, CPU)


@pytest.mark.parametrize("backend", ["auto", "dali"])
def test_pyav_decodes_what_dali_cannot(tmp_path, caplog, backend):
    paths = [videos.write_numbered(tmp_path, codec, 40, codec) for codec in ("vp9", "h264", "vp8")]
    planner = Fixed(videos.manifest_of(tmp_path, paths), [3, 17, 36])
    loader._log_once.cache_clear()
    with caplog.at_level(logging.INFO, "vjepa_fast"):
        for _ in range(2):
            with make_loader(planner, [[0, 1], [1], [2]], 48, backend) as batches:
                assert batches.backend == "dali"
                assert batches.fallback == [str(paths[1])]
                shown = [videos.read_numbers(clip.numpy()) for b in batches for clip in b.video]
            assert shown == [[3, 17, 36]] * 4
    (record,) = caplog.records
    assert record.levelno == (logging.WARNING if backend == "dali" else logging.INFO)
    assert f"PyAV decodes 1 of 3 videos: 1 h264, such as {paths[1]}" in record.getMessage()


def test_without_dali_auto_takes_pyav_and_says_so_once(vp9, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)  # makes the import fail
    loader._log_once.cache_clear()
    with caplog.at_level(logging.INFO, "vjepa_fast"):
        for _ in range(2):
            with make_loader(training(vp9), [[0]], 24) as batches:
                assert batches.backend == "pyav"
                assert len(list(batches)) == 1
    (record,) = caplog.records
    assert "decoding with pyav on cpu: nvidia.dali cannot be imported" in record.getMessage()
    with pytest.raises(UserError, match=r"nvidia\.dali cannot be imported"):
        make_loader(training(vp9), [[0]], 24, "dali")


# --- what goes wrong ---------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_changed_or_missing_file_is_refused(tmp_path, backend):
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


@pytest.mark.parametrize("packet", [None, 20])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_damaged_file_is_named(tmp_path, backend, packet):
    paths = [videos.write_numbered(tmp_path, "vp9", 40, f"{i}") for i in range(3)]
    manifest = videos.manifest_of(tmp_path, paths)
    path = damage(manifest, 1, packet)
    batches = make_loader(Fixed(manifest, [0, 39]), [[0, 1, 2]], 24, backend)
    with pytest.raises(UserError, match=rf"found .*{path}"):
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
