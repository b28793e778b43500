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
    matrix = frame.side_data.get(Type.DISPLAYMATRIX)
    if matrix is None:
        return 0
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].astype(float).tolist()
    slack = _SKEW * max(map(abs, (a, b, c, d)))
    if max(abs(b), abs(c)) <= slack and a * d > 0:
        return 0 if a > 0 else 180
    if max(abs(a), abs(d)) <= slack and b * c < 0:
        return 90 if b > 0 else 270
    return None
