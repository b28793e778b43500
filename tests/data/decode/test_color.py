"""Both loaders show the colors that were drawn, whatever the matrix, range and pixel format."""

from dataclasses import replace

import av
import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.decode import patches
from tests.data.loading import BACKENDS, CPU, Fixed, one
from tests.helpers import videos
from vjepa_fast.data.decode.backend import unsuited_to_dali
from vjepa_fast.data.decode.color import from_bt601, manifest_range
from vjepa_fast.data.decode.dali import DaliDecoder, corrected
from vjepa_fast.data.ffmpeg import BadVideo, open_video
from vjepa_fast.data.manifest.files import read_manifest
from vjepa_fast.data.plan.clip_plan import ClipPlan
from vjepa_fast.data.prepare.inspect import probe_video

TOLERANCE = 2  # gray levels, of every channel of every patch
TAGS = [(matrix, full) for matrix in (1, 5, 6, 9, 7, 4) for full in (False, True)]
# Encoder, container and pixel format. These encoders' streams name matrix and range.
TAGGED = [
    ("libx264", "mp4", "yuv420p"),
    ("libx264", "mkv", "yuv444p"),
    ("libx264", "mp4", "yuv422p10le"),
    ("libx265", "mp4", "yuv420p10le"),
    ("libx265", "mkv", "yuv420p"),
    ("libvpx-vp9", "webm", "yuv420p"),
    ("libvpx-vp9", "mp4", "yuv444p"),
    ("libsvtav1", "mp4", "yuv420p10le"),
    ("ffv1", "mkv", "yuva420p"),
]
LIMITED_ONLY = [("mpeg2video", "mpg", "yuv420p"), ("prores_ks", "mov", "yuv422p10le")]


def errors(tmp_path, path, backend, gray=False):
    """Of the first frame, and of one that a seek finds."""
    manifest = videos.manifest_of(tmp_path, [path])
    frame = min(40, read_manifest(manifest)[0].frames - 1)
    return np.stack([
        patches.errors(picture, gray)
        for picture in one(Fixed(manifest, [0, frame]), backend, size=64)
    ])  # fmt: skip


def checked(tmp_path, path, dali=False, gray=False):
    """The file's colors are right with both backends; `dali` says whether DALI decodes it."""
    manifest = videos.manifest_of(tmp_path, [path])
    unsuited, _ = unsuited_to_dali(read_manifest(manifest), CPU)
    assert unsuited.tolist() == [not dali]
    for backend in BACKENDS if dali else ["pyav"]:
        assert errors(tmp_path, path, backend, gray).max() <= TOLERANCE, backend


@pytest.mark.parametrize(("encoder", "suffix", "pixels"), TAGGED)
@pytest.mark.parametrize(("matrix", "full"), TAGS[:8])
def test_tagged_video(tmp_path, encoder, suffix, pixels, matrix, full):
    path = tmp_path / f"a.{suffix}"
    patches.write_patches(path, encoder, pixels, matrix, full, frames=50)
    checked(tmp_path, path, dali=encoder == "libvpx-vp9" and matrix in (5, 6))


@pytest.mark.parametrize(("matrix", "full"), TAGS[8:])
def test_rare_matrices(tmp_path, matrix, full):
    path = tmp_path / "a.mp4"
    checked(tmp_path, patches.write_patches(path, "libx264", "yuv420p", matrix, full, frames=50))


@pytest.mark.parametrize("matrix", [1, 5, 9])
@pytest.mark.parametrize(("encoder", "suffix", "pixels"), LIMITED_ONLY)
def test_video_of_limited_range(tmp_path, encoder, suffix, pixels, matrix):
    path = tmp_path / f"a.{suffix}"
    checked(tmp_path, patches.write_patches(path, encoder, pixels, matrix, frames=50))


@pytest.mark.parametrize(
    ("pixels", "full"),
    [("yuv420p", False), ("yuv420p", True), ("yuvj420p", True), ("yuvj444p", True)],
)
def test_mjpeg_is_bt601_and_mostly_of_full_range(tmp_path, pixels, full):
    path = tmp_path / "a.avi"
    checked(tmp_path, patches.write_patches(path, "mjpeg", pixels, 5, full, frames=50), dali=True)


@pytest.mark.parametrize(
    ("encoder", "suffix", "pixels", "full"),
    [
        ("libx264", "mp4", "yuv420p", False),
        ("libx264", "mp4", "yuvj420p", True),
        ("libx265", "mp4", "yuv420p10le", False),
        ("libvpx-vp9", "webm", "yuv420p", False),
        ("libvpx", "webm", "yuv420p", False),
        ("mpeg4", "avi", "yuv420p", False),
        ("huffyuv", "avi", "yuv422p", False),
    ],
)
def test_untagged_video_is_taken_for_bt601(tmp_path, encoder, suffix, pixels, full):
    path = tmp_path / f"a.{suffix}"
    patches.write_patches(path, encoder, pixels, 5, full, tagged=False, frames=50)
    checked(tmp_path, path, dali=encoder.startswith("libvpx"))


@pytest.mark.parametrize(
    ("encoder", "suffix"), [("libvpx-vp9", "webm"), ("libvpx-vp9", "mp4"), ("mpeg4", "mkv")]
)
def test_what_only_the_container_says_counts(tmp_path, encoder, suffix):
    path = tmp_path / f"a.{suffix}"
    patches.write_patches(path, encoder, "yuv420p", 1, tagged=False, frames=50, container_tag=1)
    checked(tmp_path, path)


@pytest.mark.parametrize(
    ("encoder", "suffix", "pixels", "gray"),
    [
        ("libx265", "mp4", "gbrp", False),
        ("libvpx-vp9", "webm", "gbrp", False),
        ("ffv1", "mkv", "gbrp10le", False),
        ("ffv1", "mkv", "gray", True),
        ("libx264", "mp4", "gray", True),
        ("libx265", "mp4", "gray10le", True),
    ],
)
@pytest.mark.parametrize("full", [False, True])
def test_rgb_and_gray_video(tmp_path, encoder, suffix, pixels, gray, full):
    path = tmp_path / f"a.{suffix}"
    matrix = 5 if gray else 0
    checked(
        tmp_path, patches.write_patches(path, encoder, pixels, matrix, full, frames=50), gray=gray
    )


@pytest.mark.parametrize(
    ("matrix", "name"),
    [
        (8, "YCgCo"),
        (10, "BT.2020 with constant luminance"),
        (12, "a matrix derived from the primaries"),
        (14, "ICtCp"),
    ],
)
def test_colors_that_ffmpeg_does_not_convert_are_left_out(tmp_path, matrix, name):
    path = tmp_path / "a.mp4"
    patches.write_patches(path, "libx264", "yuv420p", matrix, drawn_as=5)
    with pytest.raises(BadVideo, match=rf"colors that are not converted to RGB \({name}\)"):
        probe_video(path)


@pytest.mark.parametrize("matrix", patches.LUMA)
@pytest.mark.parametrize("full", [False, True])
def test_dalis_colors_are_corrected(matrix, full):
    """DALI's GPU decoder takes every matrix for BT.601, follows the range, and clips."""
    largest, black = (255, 0) if full else (219, 16)
    y, blue, red, _ = patches.coded(matrix, full, bits=8)
    y, blue, red = (y - black) / largest, blue - 128, red - 128
    blue, red = (chroma / (255 if full else 224) for chroma in (blue, red))
    r, b = y + 1.402 * red, y + 1.772 * blue
    by_dali = 255 * np.stack([r, (y - 0.299 * r - 0.114 * b) / 0.587, b], -1)
    shown = torch.from_numpy(by_dali.round().clip(0, 255).astype(np.uint8))
    wrong = np.abs(shown.numpy() - patches.PATCHES)
    assert (wrong.max() < 1) == (matrix in (2, 5, 6))
    correction = torch.from_numpy(from_bt601(matrix)).float()
    left = np.abs(corrected(shown, correction).numpy() - patches.PATCHES)
    assert left[0].max() <= TOLERANCE
    assert left[1].mean() <= wrong[1].mean() / 2  # what was clipped stays inexact


def test_clips_of_other_matrices_are_corrected_in_place(tmp_path):
    """As on a GPU, with what DALI's CPU decoder shows of BT.709: it knows one matrix, too."""
    kinds = {"a": (1, False), "b": (5, False), "c": (1, True)}
    entries = [
        probe_video(
            patches.write_patches(tmp_path / f"{name}.webm", "libvpx-vp9", "yuv420p", *kind)
        )
        for name, kind in kinds.items()
    ]
    plans = [
        ClipPlan(i, entry.path, i, np.arange(2), (0.0, 0.0, 1.0, 1.0), False, {})
        for i, entry in enumerate(entries)
    ]
    as_bt601 = DaliDecoder([replace(entry, matrix=5) for entry in entries], 64, CPU, 1)
    video, failures = as_bt601.collect(plans, as_bt601.submit(plans))
    as_bt601.close()
    before = video.clone()
    decoder = DaliDecoder(entries, 64, CPU, 1)
    decoder._correct_colors(plans, video)
    decoder.close()
    assert not failures and torch.equal(video[1], before[1])
    for i in (0, 2):
        assert patches.errors(before[i, 1].numpy())[0].max() > 5
        assert patches.errors(video[i, 1].numpy())[0].max() <= TOLERANCE


def test_the_range_is_found_behind_a_packet_that_does_not_decode(tmp_path):
    """Whether the file is damaged is judged elsewhere."""
    path, cut = tmp_path / "a.mkv", tmp_path / "cut.mkv"
    patches.write_patches(path, "libx264", "yuv420p", 1, True, frames=30)
    with open_video(str(path)) as source, av.open(str(cut), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for i, packet in enumerate(source.demux(video=0)):
            if i == 0:
                junk = av.Packet(b"\0\0\0\x05junk")
                junk.pts, junk.dts, junk.time_base = packet.pts, packet.dts, packet.time_base
                packet = junk
            packet.stream = stream
            target.mux(packet)
    with open_video(str(path)) as container:
        frame = next(container.decode(video=0))
    assert manifest_range(frame, "h264", str(cut), 0) is True


def test_a_matrix_that_differs_in_container_and_stream_is_the_streams(tmp_path):
    path = tmp_path / "a.mkv"
    patches.write_patches(path, "libx264", "yuv420p", 9, frames=50, container_tag=1)
    checked(tmp_path, path)


@pytest.mark.parametrize(("tagged", "range_"), [(True, True), (False, None)])
def test_dali_gets_no_range_that_only_the_container_says(tmp_path, tagged, range_):
    """DALI's GPU decoder knows the range of the H.264 stream; FFmpeg also the container's."""
    path = tmp_path / "a.mkv"
    patches.write_patches(path, "libx264", "yuv420p", 1, True, tagged, frames=50, container_tag=1)
    entry = probe_video(path)
    assert (entry.matrix, entry.full_range) == (1, range_)
    unsuited, _ = unsuited_to_dali([replace(entry, width=640, height=480)], torch.device("cuda"))
    assert unsuited.tolist() == [not tagged]
    checked(tmp_path, path)


@pytest.mark.parametrize(
    ("name", "mode", "options"),
    [
        ("a.jpg", "RGB", {"quality": 98, "subsampling": 2}),
        ("a.jpg", "RGB", {"quality": 98, "subsampling": 0}),
        ("a.jpg", "L", {"quality": 98}),
        ("a.png", "RGB", {}),
        ("a.png", "RGBA", {}),
        ("a.png", "L", {}),
        ("a.png", "P", {}),
        ("a.webp", "RGB", {"lossless": True}),
        ("a.webp", "RGB", {"quality": 100}),
        ("a.webp", "RGBA", {"quality": 100}),
        ("a.bmp", "RGB", {}),
    ],
)
def test_images(tmp_path, name, mode, options):
    picture = patches.PATCHES.astype(np.uint8).repeat(32, 0).repeat(16, 1)
    Image.fromarray(picture).convert(mode).save(tmp_path / name, **options)
    checked(tmp_path, tmp_path / name, gray=mode == "L")
