"""Odd streams and odd containers as encoders and FFmpeg's muxers write them directly."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np

from tests.data.frames.makers.numbered_videos import FRAMES, Case, encode, moved

_WRAP = (1 << 33) // 3600  # frames until the clock of MPEG-TS starts again
_TS_PACKET = 188  # bytes
_FRAGMENTS = "frag_keyframe+empty_moov+default_base_moof"
_MOVFLAGS = {
    "fragments": _FRAGMENTS,
    "fragments_sidx": _FRAGMENTS + "+global_sidx",
    "fragments_each": "frag_every_frame+empty_moov",
    "fragments_after": "frag_keyframe",
    "negative_ctts": "negative_cts_offsets",
}
_RAW = (("h264", "h264"), ("hevc", "hevc"), ("mpeg4", "m4v"), ("mpeg2", "mpeg2video"))


def _doubled(packets: list[av.Packet], strict: bool) -> Iterable[av.Packet]:
    """Every tenth frame has the time stamp of the one before it; with `strict` only where that is
    not before its decoding time."""
    stamps = sorted(packet.pts for packet in packets)
    for packet in packets:
        rank = stamps.index(packet.pts)
        earlier = stamps[rank - (rank % 10 == 9)]
        if earlier >= packet.dts or not strict:
            packet.pts, packet.dts = earlier, min(packet.dts, earlier)
        yield packet


def _unshown_vp8(packets: list[av.Packet]) -> Iterable[av.Packet]:
    """Every seventh picture is decoded, but not shown, as libvpx's alternative references are."""
    for number, packet in enumerate(packets):
        if number % 7 == 4:
            data = bytearray(bytes(packet))
            data[0] &= ~16  # show_frame
            packet.update(bytes(data))
        yield packet


def _unshown_vp9(packets: list[av.Packet]) -> Iterable[av.Packet]:
    """Key frames but the first are not shown and share a packet ("superframe") with the picture
    after them; every tenth picture is followed by one that shows a stored picture again."""
    hidden = None
    for number, packet in enumerate(packets):
        data = bytearray(bytes(packet))
        stamps = 2 * number
        if packet.is_keyframe and number:
            data[0] &= ~2  # show_frame
            hidden = data
            continue
        made, key = [data], packet.is_keyframe
        if hidden:
            sizes = b"".join(len(part).to_bytes(2, "little") for part in (hidden, data))
            marker = bytes([0b11001001])  # two pictures, sizes of two bytes
            made, key, hidden = [hidden + data + marker + sizes + marker], True, None
        if number % 10 == 6:
            made.append(bytes([0b10001000]))  # shows what is stored in place 0
        for later, part in enumerate(made):
            new = av.Packet(bytes(part))
            new.stream, new.time_base, new.is_keyframe = packet.stream, packet.time_base, key
            new.pts = new.dts = stamps + later
            key = False
            yield new


def _gap(frames: int) -> list[int]:
    return [i + frames * (i >= FRAMES // 2) for i in range(FRAMES)]


def _uneven() -> list[int]:
    steps = np.random.default_rng(5).choice([1, 1, 2, 7], FRAMES)
    return (np.cumsum(steps) - steps[0]).tolist()


def _joined(codec: str, structure: str, again: bool, lost: int, path: Path) -> None:
    """Two recordings, one after the other in one file; with `again` the stamps start again. In
    MPEG-TS the packets' counters tell that `lost` packets are missing between them."""
    head = encode(codec, structure, path, 60).read_bytes()
    by = 0 if again else 60
    tail = encode(codec, structure, path, range(60, 120), alter=moved(by)).read_bytes()
    if path.suffix == ".ts":
        tail = _counted_on(head, tail, lost)
    path.write_bytes(head + tail)


def _counted_on(head: bytes, tail: bytes, lost: int) -> bytes:
    """MPEG-TS packets whose continuity counters go on where those of `head` end."""
    last = {_program(head, at): head[at + 3] & 15 for at in range(0, len(head), _TS_PACKET)}
    made, first = bytearray(tail), {}
    for at in range(0, len(tail), _TS_PACKET):
        program, counter = _program(tail, at), tail[at + 3] & 15
        start = first.setdefault(program, counter)
        new = (last.get(program, 0) + 1 + lost + counter - start) % 16
        made[at + 3] = tail[at + 3] & 240 | new
    return bytes(made)


def _program(data: bytes, at: int) -> int:
    """The program identifier of the MPEG-TS packet at a position."""
    return int.from_bytes(data[at + 1 : at + 3]) & 0x1FFF


def situations() -> list[Case]:
    """Cases named situation-codec-structure-container."""
    cases = []

    def add(situation: str, kind: tuple[str, str, str], **settings: object) -> None:
        codec, structure, suffix = kind
        make = partial(encode, codec, structure, **settings)
        cases.append(Case(f"{situation}-{codec}-{structure}-{suffix}", suffix, make))

    for kind in (
        ("h264", "bframes", "mp4"),
        ("h264", "open", "mkv"),
        ("h264", "plain", "flv"),
        ("vp9", "plain", "webm"),
        ("av1", "hidden", "webm"),
        ("mpeg4", "open", "avi"),
        ("hevc", "open", "ts"),
        ("vp8", "plain", "webm"),
        ("mjpeg", "plain", "mov"),
    ):
        add("vfr", kind, pts=_uneven())
        add("gap", kind, pts=_gap(500))
        add("gop_long", kind, gop=250)
        add("gop_short", kind, gop=3)
        add("rate_ntsc", kind, rate=Fraction(30000, 1001))
        if kind[0] not in ("av1", "mpeg4"):  # which do not allow it
            add("rate_high", kind, rate=1500)  # more than the milliseconds of some containers
        strict = kind[2] not in ("mkv", "webm", "flv")
        if not strict or kind[1] != "plain":
            add("doubled", kind, alter=partial(_doubled, strict=strict))
    for codec, structure in (
        ("h264", "plain"),
        ("h264", "bframes"),
        ("h264", "open"),
        ("mpeg2", "open"),
        ("hevc", "open"),
    ):
        for suffix in ("ts", "mpg", "vob"):
            name = f"{codec}-{structure}-{suffix}"
            for situation, again in (("joined", False), ("joined_again", True)):
                make = partial(_joined, codec, structure, again, 0)
                cases.append(Case(f"{situation}-{name}", suffix, make))
        # FFmpeg cannot tell a jump of the counters at a joint from packets that were lost
        make = partial(_joined, codec, structure, False, 5)
        cases.append(Case(f"joined_lost-{codec}-{structure}-ts", "ts", make, "corrupt packets"))
        for before in (60, 1):
            add(f"wrap{before}", (codec, structure, "ts"), alter=moved(_WRAP - before))
        add("m2ts", (codec, structure, "m2ts"), muxer="mpegts", options={"mpegts_m2ts_mode": "1"})
    for codec, structure in (
        ("h264", "bframes"),
        ("h264", "open"),
        ("hevc", "open"),
        ("vp9", "plain"),
        ("av1", "hidden"),
    ):
        for situation, flags in _MOVFLAGS.items():
            add(situation, (codec, structure, "mp4"), options={"movflags": flags})
        add("no_cues", (codec, structure, "mkv"), options={"live": "1"})
        add("one_cluster", (codec, structure, "mkv"), options={"cluster_time_limit": "30000"})
    for suffix in ("webm", "mkv", "avi"):
        add("unshown", ("vp8", "plain", suffix), alter=_unshown_vp8)
    for suffix in ("webm", "mkv", "mp4", "avi"):
        add("unshown", ("vp9", "plain", suffix), alter=_unshown_vp9)
    for suffix in ("mp4", "mkv", "ts", "avi", "flv"):
        add("deep", ("h264", "deep", suffix), gop=48)
        if suffix != "avi":
            add("deep", ("hevc", "deep", suffix), gop=48)
    for codec, muxer in _RAW:
        for structure in ("plain", "bframes", "open"):
            add("raw", (codec, structure, muxer), muxer=muxer)
    for codec in ("vp8", "vp9", "av1"):
        add("raw", (codec, "plain", "ivf"))
    add("raw", ("av1", "hidden", "obu"))
    add("raw", ("mjpeg", "plain", "mjpeg"))
    add("ogg", ("vp8", "plain", "ogg"))
    for codec, structure in (("h264", "open"), ("mpeg2", "open"), ("vp9", "plain")):
        add("nut", (codec, structure, "nut"))
    return cases
