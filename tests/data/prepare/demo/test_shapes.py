"""The shapes: labels, randomness, and that only motion shows what a shape does."""

from itertools import pairwise

import numpy as np
import pytest
from scipy.ndimage import rotate
from scipy.stats import ks_2samp
from sklearn.linear_model import RidgeClassifier

from vjepa_fast.data.prepare.demo.clip import FRAMES, SIZE
from vjepa_fast.data.prepare.demo.shapes import MOTIONS, SHAPES, render_clip, trajectory


def test_a_clip_is_a_function_of_seed_split_and_index():
    video, labels = render_clip(3, "train", 11)
    again, same = render_clip(3, "train", 11)
    assert video.shape == (FRAMES, SIZE, SIZE, 3)
    assert video.dtype == np.uint8
    assert np.array_equal(video, again) and labels == same == {"shape": 1, "motion": 3}
    for other in [(4, "train", 11), (3, "test", 11), (3, "train", 12)]:
        assert not np.array_equal(video, render_clip(*other)[0])


def test_an_unknown_split_is_rejected():
    with pytest.raises(ValueError, match="found split 'val'"):
        render_clip(0, "val", 0)


def test_every_pair_of_labels_comes_equally_often():
    pairs = [tuple(render_clip(0, "train", index)[1].values()) for index in range(128)]
    assert sorted(pairs) == sorted(2 * [(s, m) for s in range(8) for m in range(8)])


@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_a_shape_fits_its_circle_and_shows_that_it_turns(shape):
    angle = np.linspace(0, 2 * np.pi, 720, endpoint=False)
    outside = SHAPES[shape](1.03 * np.cos(angle), 1.03 * np.sin(angle))
    assert (outside > 0).all()
    x, y = np.meshgrid(np.linspace(-1, 1, 101), np.linspace(-1, 1, 101))

    def turned(by):
        return SHAPES[shape](np.cos(by) * x + np.sin(by) * y, np.cos(by) * y - np.sin(by) * x) < 0

    assert turned(0).any()
    for step in np.linspace(0.25, 0.45, 5):  # radians of a frame: another picture, either way
        both = (turned(step) ^ turned(-step)).sum()
        assert both > 0.1 * turned(0).sum()


def test_place_angle_and_size_of_a_frame_are_alike_in_all_motions():
    random = np.random.default_rng(0)
    for frame in (0, 3, FRAMES - 1):
        drawn = []
        for motion in range(len(MOTIONS)):
            clips = [trajectory(motion, random) for _ in range(2000)]
            place, angle, size = (np.stack([clip[k][frame] for clip in clips]) for k in range(3))
            drawn.append([*(place % SIZE).T, angle % (2 * np.pi), size])
        for motion in drawn:
            for values, still in zip(motion, drawn[-1], strict=True):
                # 96 tests of equal distributions: the smallest p is below 1e-4 in one run of 100
                assert ks_2samp(values, still).pvalue > 1e-4


@pytest.mark.slow
def test_one_frame_does_not_tell_the_motion_but_all_do():
    clips = [render_clip(0, "train", index) for index in range(2400)]
    video = np.stack([video for video, _ in clips])
    motion = np.array([labels["motion"] for _, labels in clips])
    train, test = slice(0, 1600), slice(1600, 2400)

    ink = (video.min(-1) > 145).astype(float)  # no background is as light in all colors
    for frame in (0, FRAMES - 1):
        for pixels in (video[:, frame].mean(-1) / 255, ink[:, frame]):
            pixels = pixels.reshape(len(video), -1)
            classifier = RidgeClassifier(alpha=30).fit(pixels[train], motion[train])
            # 800 clips: the standard error at chance, 1/8, is 0.012
            assert abs(classifier.score(pixels[test], motion[test]) - 1 / 8) < 0.045

    seen = [_motion_by_eye(masks) for masks in ink[:400]]
    assert np.mean(seen == motion[:400]) > 0.75


def _motion_by_eye(masks):
    """Motion 0..7 of a shape's masks [T, H, W]: how its place, its area and its picture change."""
    area = np.log(masks.sum((1, 2)))
    if area.std() > 0.2:
        return MOTIONS.index("pulses")
    # The phase of the coarsest wave along an axis is the place along it; both wrap around.
    waves = np.fft.fft2(masks)
    place = np.unwrap(-np.angle(np.stack([waves[:, 1, 0], waves[:, 0, 1]])), axis=1)
    y, x = (place - place.mean(1, keepdims=True)) * SIZE / (2 * np.pi)
    if min(y.std(), x.std()) > 2:
        clockwise = (x[:-1] * y[1:] - y[:-1] * x[1:]).sum() > 0
        return MOTIONS.index("circles clockwise" if clockwise else "circles counterclockwise")
    if max(y.std(), x.std()) > 2:
        return MOTIONS.index("swings sideways" if x.std() > y.std() else "swings up and down")
    middle = SIZE // 2
    shifts = np.round(middle - place.T * SIZE / (2 * np.pi)).astype(int)
    centered = [np.roll(m, s, (0, 1)) for m, s in zip(masks, shifts, strict=True)]
    alike = {
        way: sum(
            (rotate(one, -way * 20, reshape=False, order=1) * other).sum()
            for one, other in pairwise(centered)
        )
        for way in (-1, 0, 1)
    }
    names = {-1: "turns counterclockwise", 0: "stays", 1: "turns clockwise"}
    return MOTIONS.index(names[max(alike, key=alike.get)])
