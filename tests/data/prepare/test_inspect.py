"""The time stamps and key frames that inspection finds in a video, in a file or a tar archive."""

import tarfile
from fractions import Fraction

import av
import numpy as np
import pytest

from tests.helpers import videos
from vjepa_fast.data.ffmpeg import frame_times
from vjepa_fast.data.manifest.files import read_manifest, write_manifest
from vjepa_fast.data.manifest.location import archive_of, entry_url, is_in_place, read_entry
from vjepa_fast.data.prepare.inspect import probe_video


def write_timed(path, times, codec="h264"):
    """Numbered frames shown at `times` in seconds, whole milliseconds each."""
    with av.open(str(path), "w") as container:
        encoder, _, pixels = videos.CODECS[codec]
        stream = container.add_stream(encoder, rate=30, options=videos.FAST.get(encoder, {}))
        stream.height, stream.width, stream.pix_fmt = 48, 64, pixels
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.codec_context.gop_size = 12
        for i, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(videos.numbered(i), format="rgb24")
            frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(("codec", "gop"), [("h264", 12), ("vp9", 12), ("vp8", 12), ("mjpeg", 1)])
def test_a_constant_rate(tmp_path, codec, gop):
    entry = probe_video(videos.write_numbered(tmp_path, codec, 30))
    assert (entry.fps, entry.vfr, entry.gop) == (25.0, False, gop)
    assert entry.duration == pytest.approx(30 / 25, abs=0.002)
    assert frame_times(entry_url(entry), entry.frames) == pytest.approx(
        np.arange(30) / 25, abs=0.001
    )


@pytest.mark.parametrize("extension", ["mp4", "mkv", "webm"])
def test_a_variable_rate(tmp_path, extension):
    steps = np.where(np.arange(59) < 30, 0.033, 0.1)
    times = np.concatenate([[0], np.cumsum(steps)])
    codec = "vp9" if extension == "webm" else "h264"
    entry = probe_video(write_timed(tmp_path / f"v.{extension}", times, codec))
    assert entry.vfr
    assert entry.frames == 60
    assert entry.fps == pytest.approx(59 / times[-1], rel=0.02)
    assert frame_times(entry_url(entry), entry.frames) == pytest.approx(times, abs=0.0011)


@pytest.mark.parametrize("rate", [30, 24000 / 1001, 30000 / 1001])
def test_time_stamps_in_whole_milliseconds_are_no_variable_rate(tmp_path, rate):
    times = np.arange(200) / rate
    entry = probe_video(write_timed(tmp_path / "v.webm", times, "vp9"))
    assert not entry.vfr
    assert entry.fps == pytest.approx(rate, rel=0.003)


def test_a_member_of_a_tar_archive_is_read_at_its_offset(tmp_path):
    files = [videos.write_numbered(tmp_path, codec, 20, codec) for codec in ("h264", "vp9")]
    archive = tmp_path / "a, b; c.tar"
    with tarfile.open(archive, "w") as tar:
        for file in files:
            tar.add(file, file.name)
    with tarfile.open(archive) as tar:
        members = {member.name: (member.offset_data, member.size) for member in tar}
    entries = []
    for file in files:
        alone = probe_video(file)
        entry = probe_video(f"{archive}::{file.name}", member=members[file.name])
        assert archive_of(entry.path) == str(archive)
        found = (entry.frames, entry.codec, entry.duration, entry.gop, entry.size_bytes)
        assert found == (alone.frames, alone.codec, alone.duration, alone.gop, alone.size_bytes)
        assert read_entry(entry).tobytes() == file.read_bytes() == read_entry(alone).tobytes()
        with av.open(entry_url(entry)) as container:
            pictures = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
        assert videos.read_numbers(np.stack(pictures)) == list(range(20))
        entries.append(entry)
    write_manifest(tmp_path / "m.csv", entries)
    assert read_manifest(tmp_path / "m.csv") == entries
    assert all(is_in_place(entry) for entry in entries)
    archive.write_bytes(archive.read_bytes()[:-1])
    assert not any(is_in_place(entry) for entry in entries)
