"""Demo data: labeled videos of handwritten digits that move over textured backgrounds.

`digit` (10 classes) is appearance; `direction` (8 classes, clockwise in steps of 45 degrees from
"right") is motion. A digit starts at a random position, moves at a random speed and wraps around
the frame, so its position in any single frame is uniform and independent of the direction. The
camera shakes and pans: digit and background shake together, and the background moves in a random
direction, so neither the difference of two frames nor the motion of most pixels gives the direction
away. The images are scikit-learn's `load_digits` (1,797 scans of 8x8 pixels, UCI machine learning
repository); the test split has images that are not in the training split.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from sklearn.datasets import load_digits

from vjepa_fast.data.prepare.demo.clip import FRAMES, SIZE, generator, line

DIGITS = 10
DIRECTIONS = 8

VERSION = 4  # raise it when the drawing changes: files of other versions are written again
_DIGIT_SIZE = 20.0  # pixels that the 8 scanned ones are stretched to
_SPEED = (2.0, 4.0)  # of the digit, pixels per frame
_PAN = (1.5, 3.0)  # of the background, pixels per frame
_SHAKE = 0.75  # of the camera, pixels, standard deviation in each direction
_BACKGROUND = 125.0  # grey level
_CONTRAST = 130.0  # grey levels that the ink is lighter
_EDGE = 0.4  # ink, 0 to 1, at the edge of a stroke
_SHARPNESS = 3.0  # factor of the contrast of the ink there
_TEXTURE = 30.0  # grey levels, standard deviation
_GRAIN = 1.2  # pixels, the texture's smoothness
_NOISE = 5.0  # of the sensor, grey levels, standard deviation
_HELD_OUT = 0.2  # of the images of each digit, for the test split


def render_clip(seed: int, split: str, index: int) -> tuple[np.ndarray, dict[str, int]]:
    """Draw clip `index` of a split: uint8 [FRAMES, SIZE, SIZE, 3] (RGB) and its labels.

    A pure function of its arguments. Any 80 consecutive indices hold every (digit, direction).
    Raises ValueError for a split other than "train" and "test".
    """
    random = generator(seed, split, index)
    direction, digit = index % DIRECTIONS, index // DIRECTIONS % DIGITS

    images = digit_images(split)[digit]
    image = images[random.integers(len(images))]
    shake = _SHAKE * random.standard_normal((FRAMES, 2))
    glide = line(random.uniform(*_SPEED), 2 * np.pi * direction / DIRECTIONS)
    pan = line(random.uniform(*_PAN), random.uniform(0, 2 * np.pi))
    digit_mask = _stretch(image, random.uniform(0, SIZE, 2) + glide + shake)

    background = _BACKGROUND + _TEXTURE * _texture(random, pan + shake)
    video = (background + digit_mask * (_BACKGROUND + _CONTRAST - background))[..., None]
    video = video + _NOISE * random.standard_normal((*video.shape[:-1], 3))
    return video.clip(0, 255).round().astype(np.uint8), {"digit": digit, "direction": direction}


@lru_cache(maxsize=2)
def digit_images(split: str) -> tuple[np.ndarray, ...]:
    """The scans of a split, for each digit: float64 [images, 8, 8] in 0 .. 1."""
    scans = load_digits()
    chosen = []
    for digit in range(DIGITS):
        images = scans.images[scans.target == digit] / 16
        first_test = round(len(images) * (1 - _HELD_OUT))
        chosen.append(images[:first_test] if split == "train" else images[first_test:])
    return tuple(chosen)


def _stretch(image: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Draw an 8x8 scan, its strokes sharpened, at `centre` [T, 2] (y, x; pixels), wrapping around:
    [T, H, W] in 0 .. 1."""
    offset = np.arange(SIZE)[:, None] - centre[:, None, :]  # [T, SIZE, 2]
    offset = (offset + SIZE / 2) % SIZE - SIZE / 2
    scan = offset * 8 / _DIGIT_SIZE + 3.5
    weight = _cubic_spline(scan[..., None] - np.arange(8))  # [T, SIZE, 2, 8]
    ink = np.einsum("tyi,ij,txj->tyx", weight[:, :, 0], image, weight[:, :, 1])
    return ((ink - _EDGE) * _SHARPNESS + 0.5).clip(0, 1)


def _cubic_spline(x: np.ndarray) -> np.ndarray:
    """The cubic B-spline: a smooth, positive bump of width 4 whose shifts by 1 add up to 1."""
    x = np.abs(x)
    return np.where(x < 1, 2 / 3 - x**2 + x**3 / 2, np.clip(2 - x, 0, None) ** 3 / 6)


def _texture(random: np.random.Generator, shift: np.ndarray) -> np.ndarray:
    """A random field, mean 0, standard deviation 1, smooth over _GRAIN pixels, moved by `shift`
    ([T, 2]: y, x; pixels; it wraps around): [T, SIZE, SIZE]."""
    frequency = np.fft.fftfreq(SIZE)
    squared = frequency[:, None] ** 2 + frequency**2
    amplitude = np.where(squared > 0, np.exp(-squared * (2 * np.pi * _GRAIN) ** 2 / 2), 0)
    spectrum = np.fft.fft2(random.standard_normal((SIZE, SIZE))) * amplitude
    turns = shift[:, 0, None, None] * frequency[:, None] + shift[:, 1, None, None] * frequency
    field = np.fft.ifft2(spectrum * np.exp(-2j * np.pi * turns)).real
    return field / np.fft.ifft2(spectrum).real.std()
