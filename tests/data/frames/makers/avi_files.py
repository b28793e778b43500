"""AVI files written chunk by chunk: packed bitstreams, empty chunks, and incomplete indices."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.data.frames.makers.numbered_videos import RATE, Case, encode

_VOP, _GOV, _USER_DATA = b"\0\0\1\xb6", b"\0\0\1\xb3", b"\0\0\1\xb2"
_KEY_FRAME = 0x10  # a flag in the index
Chunks = list[bytes]


def rewritten(
    codec: str,
    structure: str,
    alter: Callable[[Chunks], Chunks],
    path: Path,
    listed: float | None = 1.0,
) -> None:
    """Encode an AVI and write its chunks anew.

    `listed` is the part of the frames that the index lists; without an index if it is None.
    """
    with tempfile.TemporaryDirectory() as folder:
        data = encode(codec, structure, Path(folder) / "source.avi").read_bytes()
    start = data.index(b"movi")
    header, at, chunks = bytearray(data[: start - 8]), start + 4, []
    while data[at : at + 4] == b"00dc":
        (size,) = struct.unpack_from("<I", data, at + 4)
        chunks.append(data[at + 8 : at + 8 + size])
        at += 8 + size + size % 2
    keys = {chunks[i] for i in _key_chunks(data[at:])}
    chunks = alter(chunks)
    struct.pack_into("<I", header, header.index(b"avih") + 8 + 16, len(chunks))
    struct.pack_into("<I", header, header.index(b"strh") + 8 + 32, len(chunks))
    movi, index = b"movi", b""
    for chunk in chunks:
        key = _KEY_FRAME if chunk in keys or _kind(chunk) == "I" else 0
        index += b"00dc" + struct.pack("<III", key, len(movi), len(chunk))
        movi += b"00dc" + struct.pack("<I", len(chunk)) + chunk + b"\0" * (len(chunk) % 2)
    body = bytes(header) + b"LIST" + struct.pack("<I", len(movi)) + movi
    if listed is not None:
        index = index[: 16 * int(len(chunks) * listed)]
        body += b"idx1" + struct.pack("<I", len(index)) + index
    path.write_bytes(body[:4] + struct.pack("<I", len(body) - 8) + body[8:])


def _key_chunks(index: bytes) -> set[int]:
    """Which chunks the old index calls key frames."""
    at = index.index(b"idx1") + 8
    flags = [flag for name, flag, _, _ in struct.iter_unpack("<4sIII", _whole(index[at:], 16))]
    return {i for i, flag in enumerate(flags) if flag & _KEY_FRAME}


def _whole(data: bytes, size: int) -> bytes:
    return data[: len(data) // size * size]


def _kind(chunk: bytes) -> str:
    """The type of an MPEG-4 chunk's first picture: I, P, B or S; "" of another codec."""
    at = chunk.find(_VOP)
    return "IPBS"[chunk[at + 4] >> 6] if at >= 0 else ""


def not_coded(ticks: int) -> bytes:
    """An MPEG-4 picture without content: P, at `ticks` of a second, vop_coded 0."""
    width = max(1, (RATE - 1).bit_length())
    bits = "01" + "0" + "1" + format(ticks % RATE, f"0{width}b") + "1" + "0"
    bits += "0" + "1" * (-(len(bits) + 1) % 8)
    return _VOP + int(bits, 2).to_bytes(len(bits) // 8)


def _packed(chunks: Chunks) -> Chunks:
    """DivX's packed bitstream: a picture and the B picture that is shown before it share a chunk, a
    picture that is not coded fills the place of the latter."""
    chunks, packed, at = [_without_user_data(chunk) for chunk in chunks], [], 0
    first = chunks[0]
    place = first.find(_GOV) if _GOV in first else first.index(_VOP)
    chunks[0] = first[:place] + _USER_DATA + b"DivX503b1393p" + first[place:]
    while at < len(chunks):
        if at + 1 < len(chunks) and _kind(chunks[at]) != "B" and _kind(chunks[at + 1]) == "B":
            packed += [chunks[at] + chunks[at + 1], not_coded(len(packed) + 1)]
            at += 2
        else:
            packed.append(chunks[at])
            at += 1
    return packed


def _without_user_data(chunk: bytes) -> bytes:
    while _USER_DATA in chunk:  # by which FFmpeg knows its own encoder
        at = chunk.index(_USER_DATA)
        end = chunk.index(b"\0\0\1", at + 4)
        chunk = chunk[:at] + chunk[end:]
    return chunk


def _dropped(chunks: Chunks) -> Chunks:
    """An empty chunk after every seventh one, by which recorders say that the picture stays."""
    return [part for i, chunk in enumerate(chunks) for part in [chunk, b""][: 1 + (i % 7 == 6)]]


def _skipped(chunks: Chunks) -> Chunks:
    """A picture that is not coded after every seventh chunk, as Xvid writes where nothing moves."""
    return [
        part for i, chunk in enumerate(chunks) for part in [chunk, not_coded(i)][: 1 + (i % 7 == 6)]
    ]


def situations() -> list[Case]:
    """Cases named situation-codec-structure-avi."""
    made = [
        ("rewritten", "mpeg4", "open", list, 1.0),
        ("packed", "mpeg4", "one_b", _packed, 1.0),
        ("packed_unindexed", "mpeg4", "one_b", _packed, None),
        ("skipped", "mpeg4", "plain", _skipped, 1.0),
    ]
    for codec, structure in (
        ("mpeg4", "plain"),
        ("mpeg4", "open"),
        ("h264", "plain"),
        ("h264", "open"),
        ("mjpeg", "plain"),
        ("vp9", "plain"),
        ("mpeg2", "open"),
    ):
        made += [
            ("empty_chunks", codec, structure, _dropped, 1.0),
            ("no_index", codec, structure, list, None),
            ("half_index", codec, structure, list, 0.5),
        ]
    return [
        Case(
            f"{situation}-{codec}-{structure}-avi",
            "avi",
            partial(rewritten, codec, structure, alter, listed=listed),
        )
        for situation, codec, structure, alter, listed in made
    ]
