"""A video that changes its picture size is rejected by `index`, whatever its codec."""

from fractions import Fraction

import av
import pytest

from tests.helpers import damaged, videos
from vjepa_fast.data.ffmpeg import BadVideo, open_video, video_stream
from vjepa_fast.data.frames.packets import read_packets
from vjepa_fast.data.prepare.inspect import probe_video

KINDS = [  # extension, encoder, pixel format
    ("mp4", "libx264", "yuv420p"),
    ("ts", "libx264", "yuv420p"),
    ("mkv", "libx264", "yuv420p"),
    ("mp4", "libx265", "yuv420p"),
    ("ts", "libx265", "yuv420p"),
    ("webm", "libvpx", "yuv420p"),
    ("webm", "libvpx-vp9", "yuv420p"),
    ("mkv", "libvpx-vp9", "yuv444p"),
    ("mp4", "libsvtav1", "yuv420p"),
    ("mpg", "mpeg1video", "yuv420p"),
    ("mpg", "mpeg2video", "yuv420p"),
    ("avi", "mpeg4", "yuv420p"),
    ("avi", "mjpeg", "yuvj420p"),
    ("mov", "prores_ks", "yuv422p10le"),
]
OPTIONS = {
    "libx264": {"bf": "0"},
    "libx265": {"x265-params": "log-level=none:bframes=0:repeat-headers=1"},
    "libvpx-vp9": {"lag-in-frames": "0"},
}


def write_parts(path, encoder, pixels, scales, quality=None):
    """Twelve numbered frames for each scale, a key frame every six, in one stream."""
    options = videos.FAST.get(encoder, {}) | OPTIONS.get(encoder, {})
    with av.open(str(path), "w") as container:
        stream = container.add_stream(encoder, rate=25, options=options)
        stream.pix_fmt, stream.width, stream.height = pixels, 128, 96
        shown = 0
        for part, scale in enumerate(scales):
            context = av.CodecContext.create(encoder, "w")
            context.pix_fmt, context.options = pixels, options | (quality[part] if quality else {})
            context.width, context.height = 128 * scale, 96 * scale
            context.time_base, context.framerate, context.gop_size = Fraction(1, 25), 25, 6
            for i in [*range(shown, shown + 12), None]:
                frame = None
                if i is not None:
                    picture = videos.numbered(i, 96 * scale, 128 * scale)
                    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                    frame.pts, frame.time_base = i, context.time_base
                for packet in context.encode(frame):
                    packet.stream = stream
                    container.mux(packet)
            shown += 12
    return path


@pytest.mark.parametrize(("extension", "encoder", "pixels"), KINDS)
def test_another_size_is_rejected_and_one_size_is_not(tmp_path, extension, encoder, pixels):
    path = write_parts(tmp_path / f"v.{extension}", encoder, pixels, [1, 2])
    with pytest.raises(BadVideo, match=r"changes its size \(128x96, 256x192\)"):
        probe_video(path)
    path = write_parts(tmp_path / f"w.{extension}", encoder, pixels, [1, 1])
    assert probe_video(path).frames == 24


def test_an_mp4_with_two_sample_descriptions(tmp_path):
    """Where each part has a header of its own, FFmpeg attaches the new one to a packet."""
    path = tmp_path / "v.flv"  # whose format can have a header in the middle, too
    parts = [write_parts(tmp_path / f"{i}.flv", "libx264", "yuv420p", [i]) for i in (1, 2)]
    first, second = (part.read_bytes() for part in parts)
    path.write_bytes(first + second[13:])  # without the file's header
    with pytest.raises(BadVideo, match=r"changes its size \(128x96, 256x192\)"):
        probe_video(path)


def test_other_parameters_are_no_other_size(tmp_path):
    """They are a sign of doubt, so that the whole file is decoded, no more."""
    profiles = [{"profile": "baseline"}, {"profile": "high", "refs": "3"}]
    for name, quality, doubts in [
        ("v.ts", profiles, {"new headers within the stream"}),
        ("w.ts", None, set()),
    ]:
        path = write_parts(tmp_path / name, "libx264", "yuv420p", [1, 1], quality)
        with open_video(str(path)) as container:
            assert read_packets(container, video_stream(container)).doubts == doubts
        assert probe_video(path).frames == 24


@pytest.mark.parametrize("codec", ["vp9", "h264"])
def test_the_files_of_the_soak_test(tmp_path, codec):
    path = damaged.write_sizes(tmp_path / f"v.{videos.CODECS[codec][1]}", codec)
    with pytest.raises(BadVideo, match=r"changes its size \(64x48, 128x96\)"):
        probe_video(path)
