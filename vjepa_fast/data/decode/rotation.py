"""By how much a stored picture has to be turned to stand upright, from its display matrix."""

import av
import numpy as np
from av.sidedata.sidedata import Type

_SKEW = 0.01  # of the largest coefficient: rounding, not another angle


def rotation_of(frame: av.VideoFrame) -> int | None:
    """Degrees clockwise, 0, 90, 180 or 270, by which a decoded frame has to be turned; None where
    it is to be mirrored, or turned by another angle.

    The matrix (ISO/IEC 14496-12, section 8.3.2) takes a place (x, y) of the stored picture, y
    downwards, to (a x + c y, b x + d y) of the displayed one. It comes with the container's track,
    with H.264 and H.265, and from a photograph's Exif orientation.
    """
    try:
        matrix = frame.side_data.get(Type.DISPLAYMATRIX)
    except ValueError:  # PyAV lists none where there is one that it has no name for, as Exif data
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
