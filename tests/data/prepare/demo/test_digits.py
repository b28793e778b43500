"""The moving digits: labels, randomness, and that only motion shows the direction."""

import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifier

from vjepa_fast.data.prepare.demo import digits
from vjepa_fast.data.prepare.demo.clip import FRAMES, SIZE


def test_a_clip_is_a_function_of_seed_split_and_index():
    video, labels = digits.render_clip(3, "train", 11)
    again, same = digits.render_clip(3, "train", 11)
    assert video.shape == (FRAMES, SIZE, SIZE, 3)
    assert video.dtype == np.uint8
    assert np.array_equal(video, again) and labels == same == {"digit": 1, "direction": 3}
    for other in [(4, "train", 11), (3, "test", 11), (3, "train", 12)]:
        assert not np.array_equal(video, digits.render_clip(*other)[0])


def test_every_pair_of_labels_comes_equally_often():
    pairs = [tuple(digits.render_clip(0, "train", index)[1].values()) for index in range(160)]
    assert sorted(pairs) == sorted(2 * [(d, m) for d in range(10) for m in range(8)])


def test_the_test_split_shows_other_images_than_training():
    train = {image.tobytes() for images in digits.digit_images("train") for image in images}
    test = {image.tobytes() for images in digits.digit_images("test") for image in images}
    assert not train & test
    assert len(train) + len(test) == 1797
    assert 0.19 < len(test) / 1797 < 0.21


@pytest.mark.slow
def test_one_frame_does_not_tell_the_direction_but_the_motion_does():
    clips = [digits.render_clip(0, "train", index) for index in range(2400)]
    video = np.stack([video.mean(-1) for video, _ in clips])
    direction = np.array([labels["direction"] for _, labels in clips])
    train, test = slice(0, 1600), slice(1600, 2400)

    for frame in (0, FRAMES - 1):
        pixels = video[:, frame].reshape(len(video), -1)
        classifier = RidgeClassifier(alpha=1e5).fit(pixels[train], direction[train])
        # 800 clips: the standard error at chance, 1/8, is 0.012
        assert abs(classifier.score(pixels[test], direction[test]) - 1 / 8) < 0.045

    assert np.mean(_direction_by_eye(video) == direction) > 0.75


def _direction_by_eye(video):
    """Direction 0..7 of [clips, T, H, W]: where the brightest part of the frame, the digit, goes.

    The phase of the coarsest wave along an axis is the position along it; both wrap around.
    """
    spectrum = np.fft.fft2(video)
    waves = np.stack([spectrum[:, :, 1, 0], spectrum[:, :, 0, 1]], axis=-1)  # along y, along x
    turned = -np.angle(waves[:, 1:] / waves[:, :-1]).sum(1)
    return np.round(np.arctan2(turned[:, 0], turned[:, 1]) / (np.pi / 4)).astype(int) % 8


def test_an_unknown_split_is_rejected():
    with pytest.raises(ValueError, match="found split 'val'"):
        digits.render_clip(0, "val", 0)
