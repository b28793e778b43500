"""Which packets hold a frame that no other frame refers to, so that it need not be decoded.

Of H.264 and H.265 the headers tell (ITU-T H.264, section 7.4.1, nal_ref_idc; H.265, section
7.4.2.2, table 7-1). Other codecs hardly have such frames, or do not tell at little cost.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import av

_UNUSED, _PASSED_OVER, _NEEDED = range(3)
_START = re.compile(rb"\x00\x00\x01")
# Kinds of units: slices, and what may be next to them that no later frame needs.
_H264_SLICE, _H264_PASSED_OVER = 1, {6, 9, 12}  # extra information, delimiters, filling
_HEVC_PASSED_OVER = {35, 38, 39, 40}
_HEVC_PARAMETERS = 33
# Sub-layer non-reference pictures: only pictures of higher sub-layers may refer to them.
_HEVC_UNUSED = {0, 2, 4, 6, 8, 10, 12, 14}


class NonReference:
    """Tells the packets of a stream that no other packet needs; call it with each in stored order.

    Args:
        stream: the video stream, with the headers that its container has.
    """

    def __init__(self, stream: av.video.stream.VideoStream) -> None:
        context = stream.codec_context
        self._codec = context.codec.canonical_name
        extradata = context.extradata or b""
        self._length = 0  # bytes of a unit's length; 0 where start codes divide units
        self._sublayers = 0  # unknown
        at = {"h264": 4, "hevc": 21}.get(self._codec)
        if at and extradata[:1] == b"\1" and len(extradata) > at:
            self._length = (extradata[at] & 3) + 1
        if self._codec == "hevc":
            if self._length:
                extradata = b"".join(b"\0\0\1" + unit for unit in _hvcc_units(extradata))
            self._read_sublayers(extradata, _after_start_codes(extradata))

    def __call__(self, packet: av.Packet) -> bool:
        """Whether the packet may be left out. In doubt it may not."""
        if self._codec not in ("h264", "hevc"):
            return False
        data = bytes(packet)
        units = _after_lengths(data, self._length) if self._length else _after_start_codes(data)
        if self._codec == "hevc":
            units = list(units)
            self._read_sublayers(data, units)  # may be sent before the key frame that they are for
        if packet.is_keyframe:
            return False
        kind_of = _kind_of_h264 if self._codec == "h264" else self._kind_of_hevc
        found = False
        for at in units:
            kind = kind_of(int.from_bytes(data[at : at + 2]))
            if kind == _NEEDED:
                return False
            found |= kind == _UNUSED
        return found

    def _kind_of_hevc(self, head: int) -> int:
        kind = head >> 9
        if kind in _HEVC_UNUSED and head & 7 == self._sublayers:
            return _UNUSED
        return _PASSED_OVER if kind in _HEVC_PASSED_OVER else _NEEDED

    def _read_sublayers(self, data: bytes, units: Iterable[int]) -> None:
        """From the sequence parameter sets among the units."""
        for at in units:
            if data[at] >> 1 & 63 == _HEVC_PARAMETERS and at + 2 < len(data):
                self._sublayers = max(self._sublayers, (data[at + 2] >> 1 & 7) + 1)


def _kind_of_h264(head: int) -> int:
    reference, kind = head >> 13 & 3, head >> 8 & 31
    if kind == _H264_SLICE and not reference:
        return _UNUSED
    return _PASSED_OVER if kind in _H264_PASSED_OVER else _NEEDED


def _after_start_codes(data: bytes) -> Iterator[int]:
    """Where the units start."""
    return (found.end() for found in _START.finditer(data) if found.end() < len(data))


def _after_lengths(data: bytes, width: int) -> Iterator[int]:
    at = width
    while at < len(data):
        yield at
        at += int.from_bytes(data[at - width : at]) + width


def _hvcc_units(extradata: bytes) -> Iterator[bytes]:
    """The parameter sets that MP4 and Matroska store (ISO/IEC 14496-15, section 8.3.3.1)."""
    at = 23
    for _ in range(extradata[22] if len(extradata) > 22 else 0):
        count = int.from_bytes(extradata[at + 1 : at + 3])
        at += 3
        for _ in range(count):
            length = int.from_bytes(extradata[at : at + 2])
            yield extradata[at + 2 : at + 2 + length]
            at += 2 + length
            if at > len(extradata):
                return
