"""Which packets need not be decoded for the frames of a clip.

Of H.264 and H.265 the headers tell which frames no other one refers to, and which key frames no
reference crosses (ITU-T H.264, section 7.4.1, nal_ref_idc and table 7-1; H.265, section 7.4.2.2,
table 7-1). Key frames of VP8 and VP9 replace all references (RFC 6386, section 9.7; VP9 bitstream,
section 7.2). In some codecs every frame stands alone. Of others it costs too much to find out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from enum import Enum

import av

from vjepa_fast.data.frames.headers import NEW_HEADERS, size_header


class Role(Enum):
    """What a packet is for others. In doubt it is `KEPT`."""

    UNUSED = 0  # no other packet needs it
    REFERENCE = 1  # those stored after it may need it
    START = 2  # the same, and neither it nor they need those stored before it
    KEPT = 3  # to be decoded in any case, as parameters are


_START_CODE = re.compile(rb"\x00\x00\x01")
_ALONE = ("mjpeg", "prores")  # codecs without references
_WITH_KEYS = ("vp8", "vp9")  # codecs whose key frames replace all references
_HEAD = 32  # bytes at the start of a VP8 or VP9 key frame that have its picture's size
_HEVC_PARAMETERS = 33


def _h264_role(byte: int) -> Role | None:
    """Of a unit by its first byte; None if no other packet needs it: extra information, delimiters,
    filling.
    """
    reference, kind = byte >> 5 & 3, byte & 31
    if kind == 1:
        return Role.REFERENCE if reference else Role.UNUSED
    return {5: Role.START, 6: None, 9: None, 12: None}.get(kind, Role.KEPT)


def _hevc_role(byte: int) -> Role | None:
    """The same; `UNUSED` holds in the highest sub-layer only: pictures of higher ones may refer to
    sub-layer non-reference pictures.
    """
    kind = byte >> 1 & 63
    if kind <= 9 or kind in (16, 17, 18, 21):
        return Role.UNUSED if kind in (0, 2, 4, 6, 8) else Role.REFERENCE
    roles = {19: Role.START, 20: Role.START, 35: None, 38: None, 39: None, 40: None}
    return roles.get(kind, Role.KEPT)


_BY_BYTE = {
    "h264": [_h264_role(byte) for byte in range(256)],
    "hevc": [_hevc_role(byte) for byte in range(256)],
}


class Roles:
    """Tells the roles of a stream's packets; call it with each in stored order.

    Args:
        stream: the video stream, with the headers that its container has.
    """

    def __init__(self, stream: av.video.stream.VideoStream) -> None:
        context = stream.codec_context
        self._codec = context.codec.canonical_name
        extradata = context.extradata or b""
        self._by_byte = _BY_BYTE.get(self._codec)
        self._length = 0  # bytes of a unit's length; 0 where start codes divide units
        self._sublayers = 0  # unknown
        at = {"h264": 4, "hevc": 21}.get(self._codec)
        if at and extradata[:1] == b"\1" and len(extradata) > at:
            self._length = (extradata[at] & 3) + 1
        if self._codec == "hevc":
            if self._length:
                extradata = b"".join(b"\0\0\1" + unit for unit in _hvcc_units(extradata))
            self._read_sublayers(extradata, _after_start_codes(extradata))

    def __call__(self, packet: av.Packet) -> Role:
        """The role of a packet."""
        if self._codec in _ALONE:
            return Role.UNUSED if packet.size else Role.KEPT
        if self._codec in _WITH_KEYS and packet.size:
            is_key = packet.is_keyframe and size_header(self._codec, bytes(packet)[:_HEAD], b"")
            return Role.START if is_key else Role.REFERENCE
        if packet.has_sidedata(NEW_HEADERS):
            # The decoder has to see these, and they may pack units in another way.
            self._by_byte = None
        if self._by_byte is None:
            return Role.KEPT
        data = bytes(packet)
        units = _after_lengths(data, self._length) if self._length else _after_start_codes(data)
        if self._codec == "hevc":
            units = list(units)
            self._read_sublayers(data, units)  # may be sent before the key frame that they are for
        found = None
        for at in units:
            role = self._by_byte[data[at]]
            if role is Role.UNUSED and self._is_lower(data, at):
                role = Role.REFERENCE
            if role is Role.KEPT:
                return role
            if role is not None:
                found = role if found in (None, role) else Role.REFERENCE
        if found is Role.UNUSED and packet.is_keyframe:
            return Role.REFERENCE
        return found or Role.KEPT

    def _is_lower(self, data: bytes, at: int) -> bool:
        """Whether a unit is of another sub-layer than the highest, in H.265."""
        layer = int.from_bytes(data[at + 1 : at + 2]) & 7
        return self._codec == "hevc" and layer != self._sublayers

    def _read_sublayers(self, data: bytes, units: Iterable[int]) -> None:
        """From the sequence parameter sets among the units."""
        for at in units:
            if data[at] >> 1 & 63 == _HEVC_PARAMETERS and at + 2 < len(data):
                self._sublayers = max(self._sublayers, (data[at + 2] >> 1 & 7) + 1)


def _after_start_codes(data: bytes) -> Iterator[int]:
    """Where the units start."""
    return (found.end() for found in _START_CODE.finditer(data) if found.end() < len(data))


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
