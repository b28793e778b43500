"""H.264 whose pictures are coded field by field, as AVCHD and 1080i are: two packets make a frame.

x264 does not write such streams, so this writes them: every macroblock is stored without
compression (I_PCM), in slices of all three types, so that frames are reordered as usual.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np

from tests.data.frames.makers.numbered_videos import (
    FRAMES,
    HEIGHT,
    MUXERS,
    RATE,
    WIDTH,
    Case,
    picture,
)

_GOP = 16
_MIDDLE = range(84, 88)  # stored frames
_SLICE, _IDR, _SEI, _SPS, _PPS, _DELIMITER = 1, 5, 6, 7, 8, 9  # NAL unit types
_TYPES = {"I": 7, "P": 5, "B": 6}  # of slices
_PCM = {"I": 25, "P": 30, "B": 48}  # the macroblock type I_PCM in slices of each type


class Bits:
    """A string of bits in the making."""

    def __init__(self) -> None:
        self.text = ""

    def u(self, width: int, value: int) -> Bits:
        """An unsigned number of fixed width."""
        self.text += format(value, f"0{width}b")
        return self

    def ue(self, *values: int) -> Bits:
        """Unsigned numbers in Exp-Golomb code (0 is also the signed 0)."""
        for value in values:
            code = format(value + 1, "b")
            self.text += "0" * (len(code) - 1) + code
        return self

    def aligned(self, bit: str = "0") -> bytes:
        """As bytes, filled up with zeros after `bit`, which is left out where "" is given."""
        text = self.text + bit
        text += "0" * (-len(text) % 8)
        return int(text, 2).to_bytes(len(text) // 8) if text else b""


def _unit(kind: int, importance: int, payload: bytes) -> bytes:
    """A NAL unit with start code and emulation prevention."""
    escaped = re.sub(rb"\0\0(?=[\0-\3])", b"\0\0\3", payload)
    return b"\0\0\0\1" + bytes([importance << 5 | kind]) + escaped


def _headers() -> bytes:
    sps = Bits().u(8, 77).u(8, 0).u(8, 30)  # Main profile, level 3
    sps.ue(0, 0, 0, 4, 2).u(1, 0)  # 4 bits of frame_num, 8 of the order count, 2 references
    sps.ue(WIDTH // 16 - 1, HEIGHT // 32 - 1)
    sps.u(1, 0).u(1, 0).u(1, 1).u(1, 0)  # not frames only
    sps.u(1, 1).u(4, 0).u(1, 1).u(32, 1).u(32, 2 * RATE).u(1, 1)  # timing
    sps.u(3, 0).u(1, 1).u(1, 1).ue(0, 0, 10, 10, 1, 2)  # one frame is reordered
    pps = Bits().ue(0, 0).u(2, 0).ue(0, 0, 0).u(3, 0).ue(0, 0, 0).u(3, 0b100)
    return _unit(_SPS, 3, sps.aligned("1")) + _unit(_PPS, 3, pps.aligned("1"))


def _field(rows: np.ndarray, kind: str, idr: bool, reference: bool, **numbers: int) -> bytes:
    """One field of gray rows, uint8 [HEIGHT / 2, WIDTH]."""
    head = Bits().ue(0, _TYPES[kind], 0).u(4, numbers["frame"] % 16)
    head.u(1, 1).u(1, numbers["bottom"])
    if idr:
        head.ue(numbers["picture_id"] % 2)
    head.u(8, numbers["order"] % 256)
    if kind == "B":
        head.u(1, 1)
    if kind != "I":
        head.u(1, 0)  # the default number of references
        head.u({"P": 1, "B": 2}[kind], 0)  # the default order of references
    if reference:
        head.u(2 if idr else 1, 0)
    head.ue(0, 1)  # quantizer; no deblocking
    body = b""
    chroma = b"\x80" * 128
    for top in range(0, rows.shape[0], 16):
        for left in range(0, WIDTH, 16):
            if kind != "I":
                head.ue(0)  # no macroblock is skipped
            head.ue(_PCM[kind])
            body += head.aligned("") + rows[top : top + 16, left : left + 16].tobytes() + chroma
            head = Bits()
    return _unit(_IDR if idr else _SLICE, 2 * reference, body + b"\x80")


@dataclass(frozen=True)
class _Coded:
    """A coded frame: which it is, whether it can be decoded first, and its two fields."""

    shown: int
    key: bool
    fields: tuple[bytes, bytes]


def _stream(structure: str) -> Iterator[_Coded]:
    """The frames in decoding order: "plain" I and P; "bframes" also B between them, in closed
    groups; "open" in groups that begin with an I picture, but no IDR."""
    frame = idrs = start = 0
    for shown, kind in _decoding_order(structure):
        key = kind == "I"
        idr = key and (structure != "open" or shown == 0)
        if idr:
            frame, start, idrs = 0, shown, idrs + 1
        reference, fields = kind != "B", []
        for bottom in (0, 1):
            data = _unit(_DELIMITER, 0, b"\xf0")
            if key and not bottom:
                data += _headers() + _unit(_SEI, 0, bytes([6, 1, 0b11000100]) + b"\x80")
            data += _field(
                picture(shown)[bottom::2],
                kind,
                idr and not bottom,
                reference,
                frame=frame,
                bottom=bottom,
                picture_id=idrs,
                order=2 * (shown - start) + bottom,
            )
            fields.append(data)
        frame += reference
        yield _Coded(shown, key, (fields[0], fields[1]))


def _decoding_order(structure: str) -> Iterator[tuple[int, str]]:
    last = FRAMES - 1
    for shown in range(FRAMES):
        place = shown % _GOP
        closing = shown == last or (structure == "bframes" and place == _GOP - 1)
        if structure == "plain" or place == 0 or closing:
            kind = "I" if place == 0 else "P"
            yield shown, kind
            if structure == "open" and place == 0 and shown:
                yield shown - 1, "B"
        elif place % 2 == 0:
            yield shown, "P"
            yield shown - 1, "B"


def write_fields(structure: str, stamps: str, path: Path) -> None:
    """Write a stream of fields. `stamps`: "each" field has its own, both have the "same",
    both fields are "paired" in one packet, or those of all but a few in the "middle"."""
    coded = list(_stream(structure))
    raw = io.BytesIO(b"".join(field for frame in coded for field in frame.fields))
    muxer = MUXERS.get(path.suffix[1:], path.suffix[1:])
    with av.open(raw, format="h264") as given, av.open(str(path), "w", format=muxer) as made:
        copy = made.add_stream_from_template(given.streams.video[0], opaque=True)
        copy.time_base = Fraction(1, 2 * RATE)
        delay = 4  # so that no field is shown before it is decoded
        for at, frame in enumerate(coded):
            paired = stamps == "paired" or (stamps == "middle" and at not in _MIDDLE)
            parts = [b"".join(frame.fields)] if paired else frame.fields
            for bottom, data in enumerate(parts):
                packet = av.Packet(data)
                packet.stream, packet.time_base = copy, Fraction(1, 2 * RATE)
                packet.is_keyframe = frame.key and not bottom
                packet.duration = 2 // len(parts)
                packet.pts = delay + 2 * frame.shown + bottom * (stamps in ("each", "middle"))
                packet.dts = 2 * at + bottom
                made.mux(packet)


def situations() -> list[Case]:
    """Cases named fields_stamps-h264-structure-container."""
    return [
        Case(
            f"fields_{stamps}-h264-{structure}-{suffix}",
            suffix,
            partial(write_fields, structure, stamps),
        )
        for structure in ("plain", "bframes", "open")
        for suffix in ("ts", "mp4", "mkv", "mov", "avi", "vob", "mxf")
        for stamps in ("each", "same", "paired", "middle")
    ]
