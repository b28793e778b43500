"""Special situations that FFmpeg's own muxers write: cuts, splices, gaps, fragments, …"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import av
import numpy as np

from tests.data.frames.numbered_videos import FRAMES, GOP, MUXERS, Case, encode, moved

_CUT = 2 * GOP  # the frame number near which cuts begin
_HEVC_CRA, _HEVC_BLA = 21, 16  # NAL unit types
_REORDERED = [("h264", "open"), ("hevc", "open"), ("mpeg2", "open"), ("mpeg4", "open")]


def remux(
    source: Path,
    path: Path,
    alter: Callable[[list[av.Packet]], Iterable[av.Packet]] = list,
    options: dict[str, str] | None = None,
) -> None:
    """Copy the packets of a file, in units of its time base, into another container."""
    with av.open(str(source)) as given:
        [stream] = given.streams.video
        packets = [packet for packet in given.demux(stream) if packet.size]
        muxer = MUXERS.get(path.suffix[1:], path.suffix[1:])
        with av.open(str(path), "w", format=muxer, options=options or {}) as made:
            copy = made.add_stream_from_template(stream, opaque=True)
            for packet in alter(packets):
                packet.stream = copy
                made.mux(packet)


def _through_file(
    codec: str,
    structure: str,
    alter: Callable[[list[av.Packet]], Iterable[av.Packet]],
    path: Path,
    **options: str,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        # MP4 has the stamps of all packets, MPEG-TS the headers in front of every key frame
        suffix = "ts" if path.suffix == ".ts" else "mp4"
        source = encode(codec, structure, Path(folder) / f"source.{suffix}")
        remux(source, path, alter, options)


def _from_key(packets: list[av.Packet], origin: str, skipped: int = 0) -> Iterable[av.Packet]:
    """What `ffmpeg -ss -c copy` keeps: from a key frame on, whose presentation ("pts") or decoding
    time becomes 0; without the key frame and more with `skipped`."""
    keys = [i for i, packet in enumerate(packets) if packet.is_keyframe]
    kept = packets[next(i for i in keys if i >= _CUT - 5) + skipped :]
    start = getattr(kept[0], origin)
    for packet in kept:
        packet.pts, packet.dts = packet.pts - start, packet.dts - start
        yield packet


def _spliced(packets: list[av.Packet]) -> Iterable[av.Packet]:
    """The first frames, then from a later key frame on, with consecutive time stamps."""
    keys = [i for i, packet in enumerate(packets) if packet.is_keyframe]
    until, since = keys[3], keys[5]
    step = packets[1].dts - packets[0].dts
    gone = packets[since].dts - packets[until - 1].dts - step
    yield from packets[:until]
    for packet in packets[since:]:
        packet.pts, packet.dts = packet.pts - gone, packet.dts - gone
        yield packet


def _with_broken_links(packets: list[av.Packet]) -> Iterable[av.Packet]:
    """H.265's later CRA pictures as BLA ones, as splicers mark them: the decoder drops the RASL
    pictures that follow them."""
    start = packets[2 * GOP].dts
    for packet in packets:
        data = bytearray(bytes(packet))
        annexb, at = data.startswith(b"\0\0\0\1"), 0
        while packet.dts > start and at + 5 < len(data):
            if data[at + 4] >> 1 & 63 == _HEVC_CRA:
                data[at + 4] = _HEVC_BLA << 1 | data[at + 4] & 129
            if annexb:
                at = data.find(b"\0\0\1", at + 4) - 1
                at = at if at > 0 else len(data)
            else:
                at += 4 + int.from_bytes(data[at : at + 4])
        packet.update(bytes(data))
        yield packet


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


def _with_sound(codec: str, structure: str, lead: int, path: Path) -> None:
    """Sound that begins `lead` frames before the pictures."""
    with tempfile.TemporaryDirectory() as folder:
        source = encode(codec, structure, Path(folder) / "source.mp4", alter=moved(lead))
        with (
            av.open(str(source)) as given,
            av.open(str(path), "w", format=MUXERS.get(path.suffix[1:], path.suffix[1:])) as made,
        ):
            [stream] = given.streams.video
            copy = made.add_stream_from_template(stream, opaque=True)
            sound = made.add_stream("aac", rate=48000)
            packets = []
            for at in range(0, 48000 * 4, 1024):
                frame = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), "fltp")
                frame.rate, frame.pts = 48000, at
                packets += sound.encode(frame)
            packets += sound.encode(None)
            for packet in given.demux(stream):
                if packet.size:
                    packet.stream = copy
                    packets.append(packet)
            packets.sort(key=lambda packet: packet.dts * packet.time_base)
            for packet in packets:
                made.mux(packet)


def _concatenated(codec: str, structure: str, again: bool, path: Path) -> None:
    """Two recordings, one after the other in one file; with `again` the stamps start again."""
    first = encode(codec, structure, path, 60)
    head = first.read_bytes()
    by = 0 if again else 60
    tail = encode(codec, structure, path, range(60, 120), alter=moved(by)).read_bytes()
    path.write_bytes(head + tail)


def situations() -> list[Case]:
    """Cases named situation-codec-structure-container."""
    cases = []

    def add(situation, codec, structure, suffix, make, refused=""):
        name = f"{situation}-{codec}-{structure}-{suffix}"
        cases.append(Case(name, suffix, make, refused))

    for codec, structure in _REORDERED:
        for suffix in ("mkv", "mp4", "ts"):
            for origin in ("pts", "dts"):
                alter = partial(_from_key, origin=origin)
                add(
                    f"cut_{origin}",
                    codec,
                    structure,
                    suffix,
                    partial(_through_file, codec, structure, alter),
                )
            alter = partial(_from_key, origin="dts", skipped=3)
            add(
                "headless",
                codec,
                structure,
                suffix,
                partial(_through_file, codec, structure, alter),
            )
            add(
                "splice",
                codec,
                structure,
                suffix,
                partial(_through_file, codec, structure, _spliced),
            )
    for suffix in ("mkv", "mp4", "ts", "flv"):
        add(
            "headless",
            "h264",
            "bframes",
            suffix,
            partial(_through_file, "h264", "bframes", partial(_from_key, origin="dts", skipped=2)),
        )
        add(
            "bla",
            "hevc",
            "open",
            suffix,
            partial(_through_file, "hevc", "open", _with_broken_links),
        )
    for codec, structure, suffix in (
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
        add("vfr", codec, structure, suffix, partial(encode, codec, structure, pts=_uneven()))
        add("gap", codec, structure, suffix, partial(encode, codec, structure, pts=_gap(500)))
        strict = suffix not in ("mkv", "webm", "flv")
        if not strict or structure != "plain":
            alter = partial(_doubled, strict=strict)
            add("doubled", codec, structure, suffix, partial(encode, codec, structure, alter=alter))
        add("gop_long", codec, structure, suffix, partial(encode, codec, structure, gop=250))
    for codec, structure in (
        ("h264", "plain"),
        ("h264", "bframes"),
        ("h264", "open"),
        ("mpeg2", "open"),
        ("hevc", "open"),
    ):
        for suffix in ("ts", "mpg", "vob"):
            for again in (False, True):
                situation = "joined_again" if again else "joined"
                add(
                    situation,
                    codec,
                    structure,
                    suffix,
                    partial(_concatenated, codec, structure, again),
                )
        wrap = (1 << 33) // 3600
        for before in (60, 1):
            add(
                f"wrap{before}",
                codec,
                structure,
                "ts",
                partial(encode, codec, structure, alter=moved(wrap - before)),
            )
    fragments = "frag_keyframe+empty_moov+default_base_moof"
    for codec, structure in (
        ("h264", "bframes"),
        ("h264", "open"),
        ("hevc", "open"),
        ("vp9", "plain"),
        ("av1", "hidden"),
    ):
        for situation, flags in (
            ("fragments", fragments),
            ("fragments_sidx", fragments + "+global_sidx"),
            ("fragments_each", "frag_every_frame+empty_moov"),
            ("fragments_after", "frag_keyframe"),
            ("negative_ctts", "negative_cts_offsets"),
        ):
            add(
                situation,
                codec,
                structure,
                "mp4",
                partial(encode, codec, structure, options={"movflags": flags}),
            )
        add(
            "no_cues",
            codec,
            structure,
            "mkv",
            partial(encode, codec, structure, options={"live": "1"}),
        )
        add(
            "one_cluster",
            codec,
            structure,
            "mkv",
            partial(encode, codec, structure, options={"cluster_time_limit": "30000"}),
        )
    for codec, alter, suffixes in (
        ("vp8", _unshown_vp8, ("webm", "mkv", "avi")),
        ("vp9", _unshown_vp9, ("webm", "mkv", "mp4", "avi")),
    ):
        for suffix in suffixes:
            add("unshown", codec, "plain", suffix, partial(encode, codec, "plain", alter=alter))
    for suffix in ("mp4", "mkv", "ts", "flv"):
        for lead in (0, 25):
            add(f"sound{lead}", "h264", "open", suffix, partial(_with_sound, "h264", "open", lead))
    return cases
