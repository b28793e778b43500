"""A last frame that stays is no truncation; a file that lacks its end still is."""

from fractions import Fraction

import av
import pytest

from tests.helpers import videos
from vjepa_fast.data.ffmpeg import BadVideo
from vjepa_fast.data.prepare.inspect import probe_video
from vjepa_fast.data.prepare.listing.endings import is_whole

FRAMES = 50
KINDS = [
    ("flv", "libx264"),
    ("flv", "flv1"),
    ("avi", "mpeg4"),
    ("wmv", "msmpeg4v3"),
    ("mkv", "libx264"),
    ("mp4", "libx264"),
]
HALF = {"flv", "avi", "wmv"}  # whose end tells


def write_staying(path, encoder, seconds=5):
    """Numbered frames 40 ms apart, of which the last one stays."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(encoder, rate=25, options=videos.FAST.get(encoder, {}))
        stream.width, stream.height, stream.pix_fmt = 352, 288, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        packets = []
        for i in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(videos.numbered(i, 288, 352), format="rgb24")
            frame.pts, frame.time_base = 40 * i, Fraction(1, 1000)
            packets += stream.encode(frame)
        packets += stream.encode(None)
        last = max(packet.pts for packet in packets)
        for packet in packets:
            packet.duration = 1000 * seconds if packet.pts == last else 40
            container.mux(packet)
    return path


@pytest.mark.parametrize(("extension", "encoder"), KINDS)
def test_a_last_frame_that_stays_is_no_truncation(tmp_path, extension, encoder):
    path = write_staying(tmp_path / f"v.{extension}", encoder)
    assert probe_video(path).frames == FRAMES
    with open(path, "rb") as file:
        assert is_whole(file, 0, path.stat().st_size) == (extension in HALF)


@pytest.mark.parametrize("fraction", [0.3, 0.6, 0.8])
@pytest.mark.parametrize("filled", [False, True])
@pytest.mark.parametrize(("extension", "encoder"), KINDS[:4])
def test_without_its_end_it_is_truncated(tmp_path, extension, encoder, fraction, filled):
    """Cut off, or filled with zeros, as by a download that makes room at the start."""
    path = write_staying(tmp_path / f"v.{extension}", encoder)
    data = path.read_bytes()
    frames_end = data.find(b"idx1") if extension == "avi" else len(data)
    kept = data[: int(frames_end * fraction)]
    path.write_bytes(kept.ljust(len(data), b"\0") if filled else kept)
    with open(path, "rb") as file:
        assert not is_whole(file, 0, path.stat().st_size)
    with pytest.raises(BadVideo, match=r"truncated|damaged"):
        probe_video(path)


def test_an_flv_that_ends_after_a_tag_is_truncated_by_the_size_it_names(tmp_path):
    path = write_staying(tmp_path / "v.flv", "flv1")
    data = path.read_bytes()
    with av.open(str(path)) as container:
        ends = [packet.pos for packet in container.demux(video=0) if packet.size]
    path.write_bytes(data[: ends[30]])
    with pytest.raises(BadVideo, match="truncated"):
        probe_video(path)


def test_in_the_middle_of_an_archive(tmp_path):
    for extension, encoder in KINDS[:4]:
        path = write_staying(tmp_path / f"v.{extension}", encoder)
        data = path.read_bytes()
        path.write_bytes(b"before" + data + b"after")
        with open(path, "rb") as file:
            assert is_whole(file, 6, len(data))
            assert not is_whole(file, 6, len(data) + 2)
