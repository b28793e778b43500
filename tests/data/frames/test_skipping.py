"""Frames that are not decoded, because no clip shows them and no frame refers to them, change no
pixel, number or report of damage."""

from dataclasses import replace
from itertools import pairwise

import av
import numpy as np
import pytest

from tests.data.frames.makers import numbered_videos
from tests.data.frames.makers.mp4_files import joined_descriptions
from tests.data.frames.makers.numbered_videos import (
    ENCODINGS,
    FRAMES,
    GOP,
    HEIGHT,
    WIDTH,
    Encoding,
    encode,
)
from vjepa_fast.data.decode.pyav import decode_pixels
from vjepa_fast.data.ffmpeg import open_video, video_stream
from vjepa_fast.data.frames import seek
from vjepa_fast.data.frames.roles import Role, Roles
from vjepa_fast.data.frames.seek import NEAR_START, SeekError, numbered_frames
from vjepa_fast.data.manifest.entry import Seek
from vjepa_fast.data.plan.clip_plan import ClipPlan
from vjepa_fast.data.prepare.inspect import probe_video
from vjepa_fast.errors import UserError

_X264 = "bframes=3:b-adapt=0:scenecut=0:keyint=GOP:min-keyint=GOP"
_X265 = "log-level=none:keyint=GOP:pools=1:frame-threads=1:bframes=4:b-adapt=0"
MORE = {
    "h264": {
        "slices": Encoding("libx264", {"x264-params": "slices=4:bframes=3:b-adapt=0:keyint=GOP"}),
        "headers": Encoding("libx264", {"x264-params": f"{_X264}:repeat-headers=1"}),
    },
    "hevc": {
        "headers": Encoding(
            "libx265", {"preset": "ultrafast", "x265-params": f"{_X265}:repeat-headers=1"}
        ),
        "layers": Encoding(
            "libx265", {"preset": "ultrafast", "x265-params": f"{_X265}:temporal-layers=3"}
        ),
    },
}
# Of these, some frames are referred to by no other.
WITH_UNUSED = {
    (codec, structure)
    for codec in ("h264", "hevc")
    for structure in ("bframes", "open", "deep", "slices", "layers")
}


def kinds():
    for codec, structures in ENCODINGS.items():
        for structure in (*structures, *MORE.get(codec, ())):
            for suffix in ("mp4", "mkv"):
                if codec in ("h264", "hevc") or suffix == "mkv":
                    yield codec, structure, suffix


@pytest.fixture(autouse=True)
def textured(monkeypatch):
    """Pictures of moving texture: in flat ones a frame in another's place could be equal."""
    shape = HEIGHT // 4 + FRAMES, WIDTH // 4 + 2 * FRAMES
    ground = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    ground = ground.repeat(4, 0).repeat(4, 1)

    def picture(number):
        return np.ascontiguousarray(ground[number:, 2 * number :][:HEIGHT, :WIDTH])

    monkeypatch.setattr(numbered_videos, "picture", picture)
    for codec, encodings in MORE.items():
        monkeypatch.setitem(ENCODINGS, codec, ENCODINGS[codec] | encodings)


def all_frames(path):
    with open_video(str(path)) as container:
        return [frame.to_ndarray() for frame in container.decode(video_stream(container))]


def decoded(path, wanted, count, seek):
    """How many frames were decoded, and by number those that are wanted."""
    with open_video(str(path)) as container:
        stream = video_stream(container)
        found = list(numbered_frames(container, stream, wanted[0], count, seek, wanted))
    assert not any(frame.is_corrupt for number, frame in found if number in wanted)
    return len(found), {number: f.to_ndarray() for number, f in found if number in wanted}


@pytest.mark.parametrize(("codec", "structure", "suffix"), list(kinds()))
def test_the_pixels_are_those_of_a_full_decode(tmp_path, codec, structure, suffix):
    path = encode(codec, structure, tmp_path / f"video.{suffix}")
    entry, expected = probe_video(path), all_frames(path)
    assert entry.frames == len(expected)
    total = from_key = 0
    for first, step in ((5, 4), (17, 7), (33, 2), (45, 4), (46, 3), (119, 1)):
        wanted = list(range(first, min(first + 8 * step, FRAMES), step))
        count, found = decoded(path, wanted, FRAMES, Seek(entry.seek))
        for number in wanted:
            assert np.array_equal(found[number], expected[number])
        total += count
        from_key += wanted[-1] + 1 - first // GOP * GOP
    if entry.seek == Seek.BY_STAMP and (codec, structure) in WITH_UNUSED:
        needed = sum(not unused for unused in unused_frames(path).values())
        assert needed < FRAMES and total < 0.8 * from_key


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_frames_that_no_other_needs_are_not_decoded(tmp_path, codec):
    path = encode(codec, "bframes", tmp_path / "video.mp4", gop=FRAMES)
    wanted = list(range(40, 100, 4))
    unused = unused_frames(path)
    spared = [i for i in range(wanted[-1]) if unused[i] and i not in wanted]
    assert len(spared) > 30
    count, _ = decoded(path, wanted, FRAMES, Seek.BY_STAMP)
    with open_video(str(path)) as container:
        numbered = numbered_frames(container, video_stream(container), 40, FRAMES, Seek.BY_STAMP)
        every = [number for number, _ in numbered]
    assert every == list(range(FRAMES))
    # Around the last wanted frame the order of storing decides.
    assert abs(count - (wanted[-1] + 1 - len(spared))) <= 4


def roles(path):
    """Of the packets, in stored order, by time stamp."""
    with open_video(str(path)) as container:
        stream = video_stream(container)
        role_of = Roles(stream)
        return {packet.pts: role_of(packet) for packet in container.demux(stream) if packet.size}


def unused_frames(path):
    """By number, whether a frame may be left out."""
    return dict(enumerate(role is Role.UNUSED for _, role in sorted(roles(path).items(), key=at)))


def at(stamp_and_role):
    return stamp_and_role[0]


@pytest.mark.parametrize("held", [256, 2])
@pytest.mark.parametrize("codec", ["h264", "hevc", "vp8", "vp9"])
def test_frames_before_a_key_frame_that_needs_none_of_them_are_not_decoded(
    tmp_path, monkeypatch, codec, held
):
    """With room for few packets more are decoded, but no others shown."""
    monkeypatch.setattr(seek, "_HELD", held)
    path = encode(codec, "plain", tmp_path / "video.mkv")
    assert [role is Role.START for role in roles(path).values()] == [
        number % GOP == 0 for number in range(FRAMES)
    ]
    expected = all_frames(path)
    wanted = [40, 41, 43, 77, 107]  # of the GOPs from 30, 75 and 105 on, and none from 45 and 60 on
    count, found = decoded(path, wanted, FRAMES, Seek.BY_STAMP)
    assert all(np.array_equal(found[number], expected[number]) for number in wanted)
    needed = (44 - 30) + (78 - 75) + (108 - 105)
    assert count == needed if held > GOP else needed < count < 108 - 30


@pytest.mark.parametrize("codec", ["mjpeg", "prores"])
def test_of_codecs_without_references_only_wanted_frames_are_decoded(tmp_path, codec):
    path = encode(codec, "plain", tmp_path / "video.mkv")
    expected, wanted = all_frames(path), [40, 44, 48, 90]
    count, found = decoded(path, wanted, FRAMES, Seek.BY_STAMP)
    assert all(np.array_equal(found[number], expected[number]) for number in wanted)
    assert count == len(wanted)


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_a_key_frame_that_others_refer_across_is_no_start(tmp_path, codec):
    path = encode(codec, "open", tmp_path / "video.mkv")
    found = list(roles(path).values())
    assert found.count(Role.START) == 1 and found[0] is Role.START


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_parameters_within_the_stream_are_decoded_in_any_case(tmp_path, codec):
    path = encode(codec, "headers", tmp_path / "video.mp4")
    found = list(roles(path).values())
    assert found.count(Role.KEPT) == FRAMES // GOP and Role.START not in found


def test_headers_of_a_second_description_reach_the_decoder(tmp_path, monkeypatch):
    """They come with a key frame, from frame 60 on, that no wanted frame needs."""
    matrices = "bframes=0:scenecut=0:keyint=GOP:min-keyint=GOP:cqm=jvt"  # to scale coefficients
    other = Encoding("libx264", {"preset": "veryfast", "x264-params": matrices})
    monkeypatch.setitem(ENCODINGS["h264"], "other", other)
    path = tmp_path / "video.mp4"
    joined_descriptions("h264", "other", path)
    expected, wanted = all_frames(path), [40, 41, 100]
    _, found = decoded(path, wanted, FRAMES, Seek.BY_STAMP)
    assert all(np.array_equal(found[number], expected[number]) for number in wanted)


def test_only_the_highest_sublayer_is_left_out(tmp_path):
    """In lower ones, frames of which the header says "not referred to" are so by higher ones."""
    path = encode("hevc", "layers", tmp_path / "video.mkv")
    with open_video(str(path)) as container:
        stream = video_stream(container)
        role_of = Roles(stream)
        layers = {True: set(), False: set()}
        for packet in container.demux(stream):
            if packet.size:
                # A slice is the last unit; with lengths of 4 bytes.
                data, at = bytes(packet), 4
                while at + int.from_bytes(data[at - 4 : at]) + 4 < len(data):
                    at += int.from_bytes(data[at - 4 : at]) + 4
                layers[role_of(packet) is Role.UNUSED].add(data[at + 1] & 7)
    assert layers[True] == {3} and layers[False] >= {1, 2}


def cut_in_half(damaged):
    """For `encode`: of the packet with this time stamp only the first half is written."""

    def cut(packets):
        for packet in packets:
            if packet.pts == damaged:
                half = av.Packet(bytes(packet)[: packet.size // 2])
                half.pts, half.dts, half.time_base = packet.pts, packet.dts, packet.time_base
                half.stream = packet.stream
                packet = half
            yield packet

    return cut


def as_it_is_now(entry, path):
    """The manifest entry of a file that was written again."""
    file = path.stat()
    return replace(entry, mtime_ns=file.st_mtime_ns, size_bytes=file.st_size)


@pytest.mark.parametrize("codec", ["h264", "mpeg4"])
@pytest.mark.parametrize("unused", [False, True])
@pytest.mark.parametrize("wanted", [False, True])
def test_damage_is_seen_where_it_matters(tmp_path, codec, unused, wanted):
    path = encode(codec, "bframes", tmp_path / "video.mp4", gop=FRAMES)
    entry = probe_video(path)
    kinds = unused_frames(path) if codec == "h264" else {i: i % 3 != 0 for i in range(FRAMES)}
    damaged = next(i for i, kind in kinds.items() if i > 50 and kind == unused)
    frames = np.arange(damaged - 12 + 2 * (not wanted), 80, 4)
    assert (damaged in frames) == wanted and frames[0] > NEAR_START
    plan = ClipPlan(0, str(path), 0, frames, (0.0, 0.0, 1.0, 1.0), False, {})
    whole = decode_pixels(plan, entry, 64)

    encode(codec, "bframes", path, gop=FRAMES, alter=cut_in_half(damaged))
    entry = as_it_is_now(entry, path)
    if wanted or not unused or codec != "h264":
        with pytest.raises(UserError, match="corrupt"):
            decode_pixels(plan, entry, 64)
    else:
        assert np.array_equal(decode_pixels(plan, entry, 64), whole)


@pytest.mark.parametrize("needed", [True, False])
def test_a_frame_that_the_decoder_does_not_return_is_noticed(tmp_path, needed):
    """The frames behind it might be other ones than their time stamps tell."""
    path = encode("h264", "bframes", tmp_path / "video.mp4", gop=FRAMES)
    wanted = list(range(40, 80, 4))
    gone = next(i for i, unused in unused_frames(path).items() if i > 50 and unused != needed)
    with open_video(str(path)) as container:
        packets = [p for p in container.demux(video_stream(container)) if p.size]
    packet = sorted(packets, key=lambda packet: packet.pts)[gone]
    data = bytearray(path.read_bytes())
    filling = (packet.size - 4).to_bytes(4) + bytes([12]) + b"\xff" * (packet.size - 5)
    data[packet.pos : packet.pos + packet.size] = filling
    path.write_bytes(data)
    with pytest.raises((SeekError, av.error.FFmpegError)):
        decoded(path, wanted if needed else [*wanted, gone], FRAMES, Seek.BY_STAMP)


@pytest.mark.parametrize("seek", Seek)
def test_damage_is_seen_in_what_is_shown_after_the_clip_but_needed_by_it(tmp_path, seek):
    path = encode("h264", "bframes", tmp_path / "video.mp4", gop=GOP)
    entry = replace(probe_video(path), seek=seek)
    with open_video(str(path)) as container:
        stored = [packet.pts for packet in container.demux(video_stream(container)) if packet.size]
    order = np.argsort(np.argsort(stored)).tolist()
    # The frame that is stored next is shown before, so it refers to this one.
    damaged, last = next(pair for pair in pairwise(order) if pair[1] < pair[0] > 50)
    plan = ClipPlan(
        0, str(path), 0, np.arange(last - 12, last + 1, 4), (0.0, 0.0, 1.0, 1.0), False, {}
    )
    decode_pixels(plan, entry, 64)

    encode("h264", "bframes", path, gop=GOP, alter=cut_in_half(damaged))
    entry = as_it_is_now(entry, path)
    with pytest.raises(UserError, match=f"frame {damaged} is corrupt"):
        decode_pixels(plan, entry, 64)


def test_sublayers_are_read_before_their_key_frame(tmp_path):
    path = encode("hevc", "bframes", tmp_path / "video.mkv")
    with open_video(str(path)) as container:
        stream = video_stream(container)
        role_of = Roles(stream)
        packets = [packet for packet in container.demux(stream) if packet.size]
        assert Role.UNUSED in map(role_of, packets)
        # A sequence parameter set (kind 33) of three sub-layers, in a packet that is no key frame.
        unit = bytes([33 << 1, 1, 2 << 1, 0])
        assert role_of(av.Packet(len(unit).to_bytes(4) + unit)) is Role.KEPT
        assert Role.UNUSED not in map(role_of, packets)
