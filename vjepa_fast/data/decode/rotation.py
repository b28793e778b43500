"""Rotation metadata: the angle from a frame's display matrix, and showing stored pictures upright.

A `rotation` is the clockwise angle, in degrees, that turns the stored picture upright; None means
0. Clips are cropped as stored, resized to a square and then rotated, which moves the fewest pixels.
"""

from __future__ import annotations

import av
import numpy as np
from av.sidedata.sidedata import Type

Box = tuple[float, float, float, float]  # (top, left, height, width), as fractions of a picture
_SKEW = 0.01  # of the largest coefficient: rounding, not another angle


def rotation_of(frame: av.VideoFrame) -> int | None:
    """The rotation of a decoded frame, 0, 90, 180 or 270; None where the frame is to be mirrored,
    or turned by another angle.

    The matrix (ISO/IEC 14496-12, section 8.3.2) maps a point (x, y) of the stored picture, y
    downwards, to (a x + c y, b x + d y) of the displayed one. It comes from the container's track,
    from H.264 and H.265 streams, and from a photograph's Exif orientation.
    """
    try:
        matrix = frame.side_data.get(Type.DISPLAYMATRIX)
    except ValueError:  # PyAV cannot list side data that it has no name for, such as Exif data
        return -round(frame.rotation) % 360 if frame.rotation % 90 == 0 else None
    if matrix is None:
        return 0
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].astype(float).tolist()
    slack = _SKEW * max(map(abs, (a, b, c, d)))
    if max(abs(b), abs(c)) <= slack and a * d > 0:
        return 0 if a > 0 else 180
    if max(abs(a), abs(d)) <= slack and b * c < 0:
        return 90 if b > 0 else 270
    return None


def stored_crop(crop: Box, rotation: int | None) -> Box:
    """Where a crop of the upright picture lies in the stored one."""
    top, left, height, width = crop
    for _ in range((rotation or 0) // 90):  # one quarter turn back
        top, left, height, width = 1 - left - width, top, width, height
    return top, left, height, width


def turn(video: np.ndarray, rotation: int | None) -> np.ndarray:
    """A view of stored square frames [T, S, S, 3] that shows them upright."""
    return np.rot90(video, -((rotation or 0) // 90), axes=(1, 2))


def as_flips(rotation: int | None, mirrored: bool) -> tuple[bool, bool, bool]:
    """Turning a stored square picture upright, then mirroring left and right if `mirrored`, as
    flips: (horizontal, vertical, transposed); rows and columns are exchanged after the flips.
    """
    turns = (rotation or 0) // 90
    transposed = turns % 2 == 1
    horizontal, vertical = turns in (2, 3), turns in (1, 2)
    if transposed:  # left and right afterwards are top and bottom before
        return horizontal, vertical ^ mirrored, True
    return horizontal ^ mirrored, vertical, False


def is_mirrored_photograph(head: bytes) -> bool:
    """Whether the first bytes of a JPEG file hold an Exif orientation that mirrors the picture.

    Exif 2.3, section 4.6.4: tag 0x0112 of the first directory, 2, 4, 5 or 7.
    """
    start = head.find(b"Exif\0\0") + 6
    order = {b"II": "little", b"MM": "big"}.get(head[start : start + 2])
    if start < 6 or order is None:
        return False
    tiff = head[start:]
    directory = int.from_bytes(tiff[4:8], order)
    count = int.from_bytes(tiff[directory : directory + 2], order)
    for i in range(min(count, len(tiff) // 12)):
        field = tiff[directory + 2 + 12 * i :][:12]
        if int.from_bytes(field[:2], order) == 0x0112:
            return int.from_bytes(field[8:10], order) in (2, 4, 5, 7)
    return False
