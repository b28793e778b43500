"""MP4 files whose boxes are written by hand: edit lists, sample descriptions, sync samples."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tests.data.frames.makers.numbered_videos import FRAMES, RATE, Case, encode, in_decoding_order

_PARENTS = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts")
_SECOND = 1000  # the movie's units of time


@dataclass
class Box:
    """An MP4 box: its kind, and its content or the boxes in it."""

    kind: bytes
    content: bytes = b""
    boxes: list[Box] = field(default_factory=list)

    def find(self, *kinds: bytes) -> Box:
        """The first box at a path of kinds below this one."""
        for kind in kinds:
            self = next(box for box in self.boxes if box.kind == kind)
        return self

    def written(self) -> bytes:
        """The box as bytes."""
        content = b"".join(box.written() for box in self.boxes) or self.content
        return struct.pack(">I4s", len(content) + 8, self.kind) + content


def read_boxes(data: bytes) -> list[Box]:
    """The boxes of a file, or of a box's content."""
    found, at = [], 0
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        content = data[at + 8 : at + size]
        parent = kind in _PARENTS
        found.append(Box(kind, b"" if parent else content, read_boxes(content) if parent else []))
        at += size
    return found


def altered(
    codec: str,
    structure: str,
    alter: Callable[[Box], None],
    path: Path,
    **settings: object,
) -> None:
    """Encode an MP4, its index behind the pictures, and change the index, a "moov" box."""
    with tempfile.TemporaryDirectory() as folder:
        source = encode(codec, structure, Path(folder) / "source.mp4", **settings)
        boxes = read_boxes(source.read_bytes())
    for box in boxes:
        if box.kind == b"moov":
            alter(box)
    path.write_bytes(b"".join(box.written() for box in boxes))


def _with_edits(moov: Box, edits: list[tuple[int, int]]) -> None:
    """Replace the edit list by one of (first frame, frames); a first frame of -1 shows nothing."""
    track = moov.find(b"trak")
    (units,) = struct.unpack_from(">I", track.find(b"mdia", b"mdhd").content, 12)
    origin = 0
    for box in track.boxes:
        if box.kind == b"edts":  # presentation time 0 in units of the media
            (origin,) = struct.unpack_from(">i", box.find(b"elst").content, 12)
    entries = b"".join(
        struct.pack(
            ">IiHH",
            frames * _SECOND // RATE,
            -1 if first < 0 else origin + first * units // RATE,
            1,
            0,
        )
        for first, frames in edits
    )
    elst = Box(b"elst", struct.pack(">II", 0, len(edits)) + entries)
    track.boxes = [box for box in track.boxes if box.kind != b"edts"]
    track.boxes.insert(1, Box(b"edts", boxes=[elst]))


def _with_keys(moov: Box, keys: list[int] | None) -> None:
    """Replace the list of key frames; without one if it is None: then all are."""
    table = moov.find(b"trak", b"mdia", b"minf", b"stbl")
    table.boxes = [box for box in table.boxes if box.kind != b"stss"]
    if keys is not None:
        content = struct.pack(f">II{len(keys)}I", 0, len(keys), *(key + 1 for key in keys))
        table.boxes.append(Box(b"stss", content))


def _with_descriptions(moov: Box) -> None:
    """Two equal sample descriptions, the second for the second half; a chunk for each sample."""
    table = moov.find(b"trak", b"mdia", b"minf", b"stbl")
    description = table.find(b"stsd").content
    table.find(b"stsd").content = struct.pack(">II", 0, 2) + description[8:] * 2
    sizes = [size for (size,) in struct.iter_unpack(">I", table.find(b"stsz").content[12:])]
    (start,) = struct.unpack_from(">I", table.find(b"stco").content, 8)
    places = [start + sum(sizes[:i]) for i in range(len(sizes))]
    table.find(b"stco").content = struct.pack(f">II{len(places)}I", 0, len(places), *places)
    half = len(sizes) // 2 + 1
    table.find(b"stsc").content = struct.pack(">II6I", 0, 2, 1, 1, 1, half, 1, 2)


def joined_descriptions(codec: str, structure: str, path: Path) -> None:
    """Two streams of different headers in one track, as phones and editors write them."""
    with tempfile.TemporaryDirectory() as folder:
        parts = [
            encode(
                codec, name, Path(folder) / f"{name}.mp4", shown, alter=in_decoding_order
            ).read_bytes()
            for name, shown in (("plain", range(60)), (structure, range(60, FRAMES)))
        ]
    first, second = map(read_boxes, parts)
    data = [b"".join(b.content for b in boxes if b.kind == b"mdat") for boxes in (first, second)]
    moov, other = (next(b for b in boxes if b.kind == b"moov") for boxes in (first, second))
    table, more = (box.find(b"trak", b"mdia", b"minf", b"stbl") for box in (moov, other))
    header = b"".join(box.written() for box in first if box.kind == b"ftyp")
    sizes = [
        size
        for stbl in (table, more)
        for (size,) in struct.iter_unpack(">I", stbl.find(b"stsz").content[12:])
    ]
    start = len(header) + 8
    places = [start + sum(sizes[:i]) for i in range(len(sizes))]
    keys = [key - 1 for (key,) in struct.iter_unpack(">I", table.find(b"stss").content[8:])]
    keys += [key + 59 for (key,) in struct.iter_unpack(">I", more.find(b"stss").content[8:])]
    units = struct.unpack_from(">I", moov.find(b"trak", b"mdia", b"mdhd").content, 12)[0] // RATE
    table.find(b"stsd").content = (
        struct.pack(">II", 0, 2) + table.find(b"stsd").content[8:] + more.find(b"stsd").content[8:]
    )
    table.find(b"stsz").content = struct.pack(f">III{len(sizes)}I", 0, 0, len(sizes), *sizes)
    table.find(b"stco").content = struct.pack(f">II{len(places)}I", 0, len(places), *places)
    table.find(b"stsc").content = struct.pack(">II6I", 0, 2, 1, 1, 1, 61, 1, 2)
    table.find(b"stts").content = struct.pack(">IIII", 0, 1, len(sizes), units)
    table.boxes = [box for box in table.boxes if box.kind != b"ctts"]
    _with_keys(moov, keys)
    _with_edits(moov, [(0, FRAMES)])
    media = moov.find(b"trak", b"mdia", b"mdhd")
    media.content = media.content[:16] + struct.pack(">I", FRAMES * units) + media.content[20:]
    body = b"".join(data)
    path.write_bytes(header + Box(b"mdat", body).written() + moov.written())


# name -> edit list in frames
_EDITS = {
    "edits_short": [(first, 10) for first in range(0, FRAMES, 15)],
    "edits_one_frame": [(first, 1) for first in range(0, FRAMES, 3)],
    "edits_adjoining": [(first, 8) for first in range(0, FRAMES, 8)],
    "edits_again": [(20, 30), (20, 30), (60, 30)],
    "edits_backwards": [(90, 30), (60, 30), (30, 30), (0, 30)],
    "edit_in_the_middle": [(37, 60)],
    "edit_after_a_pause": [(-1, 50), (0, FRAMES)],
    "edit_to_the_end": [(0, 100)],
}


def situations() -> list[Case]:
    """Cases named situation-codec-structure-mp4."""
    cases = []

    def add(situation: str, codec: str, structure: str, make: Callable) -> None:
        cases.append(Case(f"{situation}-{codec}-{structure}-mp4", "mp4", make))

    for codec, structure in (
        ("h264", "plain"),
        ("h264", "bframes"),
        ("h264", "open"),
        ("hevc", "open"),
        ("vp9", "plain"),
        ("mpeg4", "open"),
        ("mjpeg", "plain"),
    ):
        for situation, edits in _EDITS.items():
            alter = partial(_with_edits, edits=edits)
            add(situation, codec, structure, partial(altered, codec, structure, alter))
        add(
            "descriptions", codec, structure, partial(altered, codec, structure, _with_descriptions)
        )
        if codec == "mjpeg":
            continue
        for situation, keys in (("keys_all", None), ("keys_one", [0]), ("keys_none_first", [60])):
            alter = partial(_with_keys, keys=keys)
            add(situation, codec, structure, partial(altered, codec, structure, alter))
    for structure in ("bframes", "open"):
        add("headers_change", "h264", structure, partial(joined_descriptions, "h264", structure))
    return cases
