"""What is odd only in the middle of a file, where `index` decodes nothing unless packets tell."""

from dataclasses import replace

import numpy as np
import pytest

from tests.data.frames.check import check, plans
from tests.data.frames.makers.avi_files import not_coded, rewritten
from tests.data.frames.makers.field_files import write_fields
from tests.data.frames.makers.numbered_videos import ENCODINGS, Case, Encoding, encode, numbers
from vjepa_fast.data.decode.pyav import decode_pixels
from vjepa_fast.data.ffmpeg import open_video, video_stream
from vjepa_fast.data.frames.fields import may_have_fields
from vjepa_fast.data.prepare.inspect import probe_video

FRAMES, ODD = 120, 80  # ODD is between the middle key frame and the last one
QUICKTIME = {
    "cinepak": Encoding("cinepak", {"g": "GOP"}, "rgb24"),
    "qtrle": Encoding("qtrle", {"g": "GOP"}, "gray"),  # 8 bits, with a palette
}


@pytest.fixture
def quicktime(monkeypatch):
    for name, encoding in QUICKTIME.items():
        monkeypatch.setitem(ENCODINGS, name, {"plain": encoding})


def _is_right(path, dali=False):
    verdict = check(path, 14, dali=dali)
    assert verdict.faults(Case("", "", lambda path: None)) == []
    assert sum(verdict.clips["pyav"].values()) > 20


def test_one_picture_that_is_not_coded(tmp_path):
    path = tmp_path / "video.avi"
    rewritten("mpeg4", "plain", lambda chunks: [*chunks[:ODD], not_coded(ODD), *chunks[ODD:]], path)
    assert probe_video(path).frames == FRAMES
    _is_right(path)


def test_a_palette_that_only_the_first_packet_has(tmp_path, quicktime):
    _is_right(encode("qtrle", "plain", tmp_path / "video.mov"))


def test_a_frame_that_only_the_container_calls_a_key_frame(tmp_path, quicktime):
    def alter(packets):
        packets[ODD].is_keyframe = True
        return packets

    _is_right(encode("cinepak", "plain", tmp_path / "video.mov", gop=55, alter=alter))


def test_frames_that_are_late_by_all_that_a_constant_rate_allows(tmp_path):
    """At 40 frames per second they are 0.52 frames late: DALI's part must have the right ones."""

    def alter(packets):
        for i, packet in enumerate(packets):
            packet.pts = packet.dts = 25 * i + 13 * (40 <= i < 110)
            yield packet

    path = encode("vp9", "plain", tmp_path / "video.webm", alter=alter, rate=1000)
    assert probe_video(path).vfr is False
    _is_right(path, dali=True)


@pytest.mark.parametrize("wanted", [60, 61])
def test_a_clip_of_one_frame_where_two_have_the_same_time_stamp(tmp_path, wanted):
    def alter(packets):
        packets[61].pts = packets[61].dts = packets[60].pts
        return packets

    entry = probe_video(encode("mjpeg", "plain", tmp_path / "video.mkv", alter=alter))
    plan = replace(plans(entry, 1)[0], frames=np.full(2, wanted))
    for seek in (0, 1, 2):
        pixels = decode_pixels(plan, replace(entry, seek=seek), 96)
        assert numbers(pixels[..., 1]) == [wanted, wanted]


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_few_frames_whose_fields_are_packets(tmp_path, suffix):
    path = tmp_path / f"video.{suffix}"
    write_fields("plain", "middle", path)
    assert probe_video(path).frames == FRAMES
    _is_right(path)


@pytest.mark.parametrize("options", [{}, {"flags": "+ildct+ilme"}, {"preset": "slow"}])
@pytest.mark.parametrize("pixels", ["yuv420p", "yuv444p", "yuv420p10le"])
@pytest.mark.parametrize("suffix", ["mp4", "ts"])
def test_only_interlaced_streams_may_have_fields(tmp_path, monkeypatch, options, pixels, suffix):
    encoding = Encoding("libx264", {"preset": "ultrafast"} | options, pixels)
    monkeypatch.setitem(ENCODINGS, "x", {"plain": encoding})
    path = encode("x", "plain", tmp_path / f"video.{suffix}", 4)
    with open_video(str(path)) as container:
        extradata = video_stream(container).codec_context.extradata
    assert may_have_fields(extradata) == ("flags" in options)
    assert not may_have_fields(extradata[:9]) and not may_have_fields(b"")


@pytest.mark.parametrize("codec", ["h264", "hevc"])
@pytest.mark.parametrize("lost", ["a key frame", "another frame"])
def test_a_packet_that_is_missing(tmp_path, codec, lost):
    """The decoder drops frames up to the next key frame."""

    def without_one(packets):
        key = next(i for i, p in enumerate(packets) if p.is_keyframe and i > ODD)
        del packets[key if lost == "a key frame" else key + 3]
        return packets

    path = encode(codec, "plain", tmp_path / "video.mkv", alter=without_one)
    assert probe_video(path).frames < FRAMES - 1 or (codec, lost) == ("h264", "another frame")
    _is_right(path)
