"""Boxes and pictures under quarter turns: what is cut as stored and turned is what was planned."""

import numpy as np
import pytest

from vjepa_fast.data.upright import stored_crop, turn

ROTATIONS = [None, 0, 90, 180, 270]


@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize("box", [(0, 0, 8, 8), (0, 0, 3, 3), (2, 1, 5, 5), (5, 0, 3, 3)], ids=str)
def test_cutting_the_stored_picture_and_turning_is_cutting_the_upright_one(rotation, box):
    stored = np.arange(2 * 8 * 16 * 3).reshape(2, 8, 16, 3)
    upright = np.rot90(stored, -((rotation or 0) // 90), axes=(1, 2))
    rows, columns = upright.shape[1:3]
    top, left, height, width = box
    crop = (top / rows, left / columns, height / rows, width / columns)
    s_top, s_left, s_height, s_width = (
        round(part * size)
        for part, size in zip(stored_crop(crop, rotation), (8, 16, 8, 16), strict=True)
    )
    cut = stored[:, s_top : s_top + s_height, s_left : s_left + s_width]
    expected = upright[:, top : top + height, left : left + width]
    assert np.array_equal(turn(cut, rotation), expected)


def test_ninety_degrees_are_clockwise():
    stored = np.array([[1, 2], [3, 4]])[None, ..., None].repeat(3, -1)
    assert turn(stored, 90)[0, ..., 0].tolist() == [[3, 1], [4, 2]]
    assert turn(stored, 270)[0, ..., 0].tolist() == [[2, 4], [1, 3]]
    assert stored_crop((0.0, 0.0, 0.5, 0.25), 90) == (0.75, 0.0, 0.25, 0.5)
