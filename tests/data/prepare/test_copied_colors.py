"""Copies have the colors that were drawn, in the one form that every decoder shows right."""

import pytest

from tests.data.decode import patches
from tests.data.loading import BACKENDS, CPU, Fixed, one
from tests.helpers import videos
from vjepa_fast.data.decode.backend import unsuited_to_dali
from vjepa_fast.data.ffmpeg import open_video
from vjepa_fast.data.manifest.files import read_manifest
from vjepa_fast.data.prepare.transcode import transcode_manifest

TOLERANCE = 2  # gray levels
ORIGINALS = {  # encoder, container, pixel format, matrix, full range, tagged
    f"{matrix} {'full' if full else 'limited'} {pixels}": (encoder, suffix, pixels, matrix, full)
    for encoder, suffix, pixels in [
        ("libx264", "mp4", "yuv420p"),
        ("libx265", "mp4", "yuv420p10le"),
        ("libvpx-vp9", "webm", "yuv444p"),
        ("ffv1", "mkv", "yuva420p"),
    ]
    for matrix in (1, 5, 9)
    for full in (False, True)
} | {
    "camera": ("mjpeg", "avi", "yuvj420p", 5, True),
    "RGB": ("libx265", "mp4", "gbrp", 0, True),
    "gray limited": ("ffv1", "mkv", "gray", 5, False),
    "gray full": ("ffv1", "mkv", "gray", 5, True),
    "ProRes": ("prores_ks", "mov", "yuv422p10le", 1, False),
}


@pytest.mark.parametrize("codec", ["h264", "vp9"])
def test_copies_have_the_drawn_colors(tmp_path, codec):
    """All in one call: a copy knows nothing of the others."""
    paths = []
    for i, original in enumerate(ORIGINALS.values()):
        path = tmp_path / f"{i}.{original[1]}"
        paths.append(patches.write_patches(path, original[0], *original[2:]))
    manifest = videos.manifest_of(tmp_path, paths)
    target, rejected = transcode_manifest(manifest, tmp_path / "copies", codec, 64, 5, workers=1)
    assert not rejected
    entries = read_manifest(target)
    assert {(entry.matrix, entry.full_range) for entry in entries} == {(5, False)}
    suited = ~unsuited_to_dali(entries, CPU)[0]
    assert suited.all() == (codec == "vp9")
    for i, name in enumerate(ORIGINALS):
        for backend in BACKENDS if codec == "vp9" else ["pyav"]:
            picture = one(Fixed(target, [0]), backend, size=64, sample_id=i)[0]
            error = patches.errors(picture, gray="gray" in name)
            assert error.max() <= TOLERANCE + 1 and error.mean() < 1, (name, backend, error)
        with open_video(entries[i].path) as container:
            assert container.streams.video[0].codec_context.color_range == patches.LIMITED
