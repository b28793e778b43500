"""Files whose packets come from another one: cuts, splices, broken links, sound that is added."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import av
import numpy as np

from tests.data.frames.makers.numbered_videos import GOP, MUXERS, Case, encode, moved

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


def situations() -> list[Case]:
    """Cases named situation-codec-structure-container."""
    cases = []

    def add(situation: str, codec: str, structure: str, suffix: str, make: Callable) -> None:
        cases.append(Case(f"{situation}-{codec}-{structure}-{suffix}", suffix, make))

    def add_copy(situation: str, codec: str, structure: str, suffix: str, alter: Callable) -> None:
        make = partial(_through_file, codec, structure, alter)
        add(situation, codec, structure, suffix, make)

    for codec, structure in _REORDERED:
        for suffix in ("mkv", "mp4", "ts"):
            kind = codec, structure, suffix
            add_copy("cut_pts", *kind, partial(_from_key, origin="pts"))
            add_copy("cut_dts", *kind, partial(_from_key, origin="dts"))
            add_copy("headless", *kind, partial(_from_key, origin="dts", skipped=3))
            add_copy("splice", *kind, _spliced)
    for suffix in ("mkv", "mp4", "ts", "flv"):
        headless = partial(_from_key, origin="dts", skipped=2)
        add_copy("headless", "h264", "bframes", suffix, headless)
        add_copy("bla", "hevc", "open", suffix, _with_broken_links)
        for lead in (0, 25):
            make = partial(_with_sound, "h264", "open", lead)
            add(f"sound{lead}", "h264", "open", suffix, make)
    return cases
