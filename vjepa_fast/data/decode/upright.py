"""Stored pictures turned upright: phones store a picture as the sensor lies, and the angle with it.

A `rotation` is in degrees clockwise, by which the stored picture has to be turned; None is 0. Clips
are cropped as stored, made square, and only then turned: that moves the fewest pixels.
"""

import numpy as np

Box = tuple[float, float, float, float]  # (top, left, height, width), as fractions of a picture


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
    """(horizontal, vertical, transposed): flips of a stored square picture, and whether to exchange
    its rows and columns after them, that turn it upright and then mirror left and right.
    """
    turns = (rotation or 0) // 90
    transposed = turns % 2 == 1
    horizontal, vertical = turns in (2, 3), turns in (1, 2)
    if transposed:  # what is then left and right is top and bottom before
        return horizontal, vertical ^ mirrored, True
    return horizontal ^ mirrored, vertical, False
