"""Both decoders show exactly the planned frames, crops, rotations and flips."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.loading import BACKENDS, Fixed, one, training
from tests.helpers import videos
from vjepa_fast.data.decode import dali
from vjepa_fast.data.decode.cut_clip import cut_clip
from vjepa_fast.data.decode.rotation import as_flips, turn
from vjepa_fast.data.loader import make_loader
from vjepa_fast.data.manifest.files import read_manifest


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
        assert batches.backend == "pyav"  # on a CPU for any codec
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
        assert by_dali.labels.keys() == by_pyav.labels.keys() == {"index"}
        assert torch.equal(by_dali.labels["index"], by_pyav.labels["index"])
        assert torch.equal(by_dali.sample_ids, by_pyav.sample_ids)


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_resizing_the_pixels_are_what_was_drawn(tmp_path, backend):
    picture = videos.numbered(5)
    picture[:] = picture.mean(-1, keepdims=True)  # gray: no color is lost
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
def test_rotated_pictures_are_turned_upright(tmp_path, backend, rotation, flip):
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


def test_rotated_and_upright_pictures_come_in_one_batch(tmp_path):
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
