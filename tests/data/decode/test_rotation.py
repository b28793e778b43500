"""Rotation: cropping the stored frame and rotating the crop equals cropping the upright frame."""

from dataclasses import replace

import numpy as np
import pytest

from tests.helpers import videos
from vjepa_fast.data.decode.pyav import decode_clip
from vjepa_fast.data.decode.rotation import stored_crop, turn
from vjepa_fast.data.loader import make_loader
from vjepa_fast.data.manifest.files import read_manifest
from vjepa_fast.data.plan.crops import Augment
from vjepa_fast.data.plan.planner import ClipPlanner

ROTATIONS = [None, 0, 90, 180, 270]


@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize("box", [(0, 0, 8, 8), (0, 0, 3, 3), (2, 1, 5, 5), (5, 0, 3, 3)], ids=str)
def test_cropping_the_stored_picture_and_turning_is_cropping_the_upright_one(rotation, box):
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


CORNERS = {"top left": (230, 20, 20), "top right": (20, 200, 20), "bottom left": (20, 20, 230)}
CORNERS["bottom right"] = (220, 220, 220)
# The display matrix shows the stored point (x, y), y downwards, at (a x + c y, b x + d y).
MATRIX = {0: (1, 0, 0, 1), 90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}


def marked(height, width):
    """An upright picture with a color of its own in each corner, over a gradient."""
    rows, columns = np.mgrid[:height, :width]
    picture = np.stack([rows * 255 // height, columns * 255 // width, rows * 0 + 128], -1)
    for name, color in CORNERS.items():
        row = slice(0, height // 3) if "top" in name else slice(-(height // 3), None)
        column = slice(0, width // 3) if "left" in name else slice(-(width // 3), None)
        picture[row, column] = color
    return picture.astype(np.uint8)


def corner_names(clip):
    """The names of the colors in the corners of [S, S, 3], from top left to bottom right."""
    inset = clip.shape[0] // 10
    found = [clip[y, x].astype(int) for y in (inset, -inset) for x in (inset, -inset)]
    return [min(CORNERS, key=lambda name: np.abs(color - CORNERS[name]).sum()) for color in found]


def stored_rotated(folder, rotation):
    """A manifest of a video whose pictures are upright as displayed, stored `rotation` before."""
    size = (96, 64) if rotation in (90, 270) else (64, 96)
    stored = np.ascontiguousarray(np.rot90(marked(*size), rotation // 90))
    path = videos.write_video(
        folder / f"{rotation}.mp4", [stored] * 4, "h264", options={"crf": "4"}
    )
    path.write_bytes(videos.with_matrix(path.read_bytes(), MATRIX[rotation]))
    return videos.manifest_of(folder, [path], f"{rotation}.csv"), marked(*size)


@pytest.mark.parametrize("rotation", MATRIX)
def test_corners_are_where_they_belong_from_the_index_to_the_clip(tmp_path, rotation):
    manifest, upright = stored_rotated(tmp_path, rotation)
    settings = {"num_frames": 2, "frame_step": 1, "seed": 1}
    shape = {"area": (1, 1), "aspect_ratio": (upright.shape[1] / upright.shape[0],) * 2}
    for flip in (False, True):
        planner = ClipPlanner(
            [read_manifest(manifest)], augment=Augment(**shape, flip=flip), **settings
        )
        assert planner.entries[0].rotation == rotation
        with make_loader(planner, [range(6)], 60, "pyav") as loader:
            (batch,) = loader
        names = list(CORNERS)
        mirrored = [names[i] for i in (1, 0, 3, 2)]
        plans = planner.plan(range(6))
        assert {plan.flip for plan in plans} == ({False, True} if flip else {False})
        for plan, clip in zip(plans, batch.video.numpy(), strict=True):
            assert plan.crop == (0, 0, 1, 1)
            for frame in clip:
                assert corner_names(frame) == (mirrored if plan.flip else names)


@pytest.mark.parametrize("rotation", MATRIX)
def test_a_crop_is_cut_from_the_upright_picture(tmp_path, rotation):
    manifest, upright = stored_rotated(tmp_path, rotation)
    planner = ClipPlanner([read_manifest(manifest)], num_frames=2, frame_step=1, augment=None)
    height, width = upright.shape[:2]
    (plan,) = planner.plan([0])
    for top, left, side in ((0, 0, 32), (height - 40, 8, 40), (10, width - 32, 32)):
        crop = (top / height, left / width, side / height, side / width)
        clip = decode_clip(replace(plan, crop=crop), planner.entries[0], side).numpy()
        expected = upright[top : top + side, left : left + side].astype(int)
        difference = np.abs(clip - expected)
        assert difference.mean() < 6  # the rest is the color's half resolution at the edges
        assert np.median(difference) <= 3
