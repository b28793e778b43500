"""Whether the pictures of an H.264 stream may be fields, of which two make a frame."""

from __future__ import annotations

import re

_SPS = 7  # NAL unit type of a sequence parameter set
_START = re.compile(rb"\x00\x00\x01(?=[\x07\x27\x47\x67])")
# Profiles whose parameters also tell the format of the colors (H.264, section 7.3.2.1.1).
_WITH_COLORS = {44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244}


class _Bits:
    """Reads numbers from a NAL unit."""

    def __init__(self, unit: bytes) -> None:
        data = unit.replace(b"\0\0\3", b"\0\0")
        self._bits, self._left = int.from_bytes(data), 8 * len(data)

    def u(self, width: int) -> int:
        """An unsigned number of fixed width; ValueError at the end of the data."""
        self._left -= width
        if self._left < 0:
            raise ValueError("too short")
        return self._bits >> self._left & ((1 << width) - 1)

    def ue(self) -> int:
        """An unsigned number in Exp-Golomb code."""
        zeros = 0
        while not self.u(1):
            zeros += 1
        return (1 << zeros) - 1 + self.u(zeros)

    def se(self) -> int:
        """A signed number in Exp-Golomb code."""
        code = self.ue()
        return (code + 1) // 2 if code % 2 else -(code // 2)


def may_have_fields(extradata: bytes) -> bool:
    """Whether an H.264 stream's first sequence parameter set allows fields (interlaced video).

    Args:
        extradata: the stream's, as MP4 stores it ("avcC") or with start codes.

    Returns:
        False where no parameter set is found.
    """
    if extradata[:1] == b"\1":
        unit = extradata[8 : 8 + int.from_bytes(extradata[6:8])]
    else:
        found = _START.search(extradata)
        unit = extradata[found.end() :] if found else b""
    try:
        return not _only_frames(_Bits(unit))
    except ValueError:
        return False


def _only_frames(bits: _Bits) -> bool:
    """frame_mbs_only_flag of a sequence parameter set."""
    if bits.u(8) & 31 != _SPS:
        raise ValueError("another unit")
    profile = bits.u(8)
    bits.u(16)
    bits.ue()
    if profile in _WITH_COLORS:
        chroma = bits.ue()
        if chroma == 3:
            bits.u(1)
        bits.ue(), bits.ue(), bits.u(1)
        if bits.u(1):
            for place in range(12 if chroma == 3 else 8):
                if bits.u(1):
                    _skip_scaling(bits, 16 if place < 6 else 64)
    bits.ue()
    order = bits.ue()  # how the order of display is coded
    if order == 0:
        bits.ue()
    elif order == 1:
        bits.u(1), bits.ue(), bits.ue()
        for _ in range(bits.ue()):
            bits.ue()
    bits.ue(), bits.u(1), bits.ue(), bits.ue()
    return bool(bits.u(1))


def _skip_scaling(bits: _Bits, size: int) -> None:
    last = following = 8
    for _ in range(size):
        if following:
            following = (last + bits.se()) % 256
        last = following or last
