"""The headers of key frames, which tell at little cost where the picture's size may change."""

from __future__ import annotations

import re
from collections.abc import Callable

import av

NEW_HEADERS = "new_extradata"  # side data of a packet: another stream's headers begin
_HEAD = 4096  # bytes of a key frame in which its headers are
_START = re.compile(rb"\x00\x00\x01")
_SIZE_OF_JPEG = {0xC0, 0xC1, 0xC2}
_NO_LENGTH = {0x01, *range(0xD0, 0xDA)}  # JPEG's markers


class Headers:
    """The headers of a video stream's key frames, as far as they change with the picture's size."""

    def __init__(self, stream: av.video.stream.VideoStream) -> None:
        self._codec = stream.codec_context.codec.canonical_name
        self._extradata = stream.codec_context.extradata or b""
        self._last: bytes | None = None

    def change_at(self, packet: av.Packet) -> bool:
        """Whether a packet has other headers than the ones before it; for key frames only.

        The picture's size need not be another: only decoding tells.
        """
        if not packet.is_keyframe or not packet.size:
            return False
        head = bytes(memoryview(packet)[:_HEAD])
        last, now = self._last, size_header(self._codec, head, self._extradata)
        self._last = now or last
        return None not in (last, now) and last != now


def size_header(codec: str, head: bytes, extradata: bytes) -> bytes | None:
    """Those bytes of a key frame that change with its picture's size; None if it has none.

    Args:
        codec: FFmpeg's name.
        head: the frame's first bytes.
        extradata: the stream's, which tells how H.264 and H.265 are packed.
    """
    if codec == "h264":
        return _parameters(head, extradata, 7, lambda byte: byte & 31, 4)
    if codec == "hevc":
        return _parameters(head, extradata, 33, lambda byte: byte >> 1 & 63, 21)
    if codec == "vp8":
        return head[6:10] if head[3:6] == b"\x9d\x01\x2a" else None
    if codec == "vp9":
        return _of_vp9(head)
    if codec == "av1":
        return _of_av1(head)
    if codec in ("mpeg1video", "mpeg2video"):
        start = head.find(b"\0\0\1\xb3")
        return head[start + 4 : start + 7] if start >= 0 else None
    if codec == "mpeg4":
        found = re.search(rb"\x00\x00\x01[\x20-\x2f](.*?)(?=\x00\x00\x01|$)", head, re.DOTALL)
        return found[1] if found else None
    if codec == "mjpeg":
        return _of_jpeg(head)
    return head[16:20] if codec == "prores" and head[4:8] == b"icpf" else None


def _parameters(
    head: bytes, extradata: bytes, wanted: int, kind: Callable[[int], int], position: int
) -> bytes | None:
    """The sequence parameter sets of H.264 or H.265, with start codes or with lengths.

    Args:
        wanted: their kind of unit.
        kind: of a unit, by its first byte.
        position: of the byte in the extradata that has the size of a length.
    """
    found = []
    if extradata[:1] == b"\1" and len(extradata) > position:  # lengths of so many bytes
        width, at = (extradata[position] & 3) + 1, 0
        while at + width < len(head):
            length = int.from_bytes(head[at : at + width])
            if kind(head[at + width]) == wanted:
                found.append(head[at + width : at + width + length])
            at += width + length
    else:
        starts = [match.end() for match in _START.finditer(head)]
        for start, end in zip(starts, [*(s - 3 for s in starts[1:]), len(head)], strict=True):
            if start < len(head) and kind(head[start]) == wanted:
                found.append(head[start:end].rstrip(b"\0"))
    return b"".join(found) or None


def _of_vp9(head: bytes) -> bytes | None:
    """Width and height (VP9 bitstream, section 6.2)."""
    bits = int.from_bytes(head[:16].ljust(16, b"\0"))
    at = 0

    def read(count: int) -> int:
        nonlocal at
        at += count
        return bits >> (128 - at) & ((1 << count) - 1)

    read(2)  # frame marker
    profile = read(1) | read(1) << 1
    if profile == 3:
        read(1)
    if read(1) or read(1):  # shows an earlier frame, or is no key frame
        return None
    read(2)
    if read(24) != 0x498342:
        return None
    if profile >= 2:
        read(1)
    if read(3) != 7:  # not RGB
        read(1)
        if profile in (1, 3):
            read(3)
    elif profile in (1, 3):
        read(1)
    return read(32).to_bytes(4)


def _of_av1(head: bytes) -> bytes | None:
    """The sequence header (AV1 bitstream, section 5.5)."""
    at = 0
    while at < len(head):
        kind, extension, sized = head[at] >> 3 & 15, head[at] >> 2 & 1, head[at] >> 1 & 1
        at += 1 + extension
        length = shift = 0
        while sized and at < len(head):
            byte = head[at]
            length |= (byte & 127) << shift
            at, shift = at + 1, shift + 7
            if byte < 128:
                break
        if kind == 1:
            return head[at : at + length]
        if not sized or kind in (3, 6):  # the frame
            return None
        at += length
    return None


def _of_jpeg(head: bytes) -> bytes | None:
    at = 2
    while at + 9 < len(head) and head[at] == 0xFF:
        if head[at + 1] in _SIZE_OF_JPEG:
            return head[at + 5 : at + 9]
        at += 2
        if head[at - 1] not in _NO_LENGTH:
            at += int.from_bytes(head[at : at + 2])
    return None
