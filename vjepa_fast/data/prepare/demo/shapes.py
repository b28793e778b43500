"""A second demo set: colored shapes that turn, circle, swing or pulse over patterned backgrounds.

It shares neither objects, nor backgrounds, nor motions with the digits, so it tests what features
of the digits are worth elsewhere. `shape` (8 classes) is appearance, `motion` (8 classes) is
motion. Place, angle and size of a shape have, in any single frame, one distribution whatever the
motion: the place is uniform on the frame, which wraps around, the angle is uniform, and the size is
that of a random moment of a pulse. The camera shakes and pans as it does for the digits. Shapes are
filled or drawn as outlines; backgrounds are gradients, stripes or checkers.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vjepa_fast.data.prepare.demo.clip import FRAMES, SIZE, generator, line

MOTIONS = (
    "turns clockwise",
    "turns counterclockwise",
    "circles clockwise",
    "circles counterclockwise",
    "swings sideways",
    "swings up and down",
    "pulses",
    "stays",
)

VERSION = 1  # raise it when the drawing changes: files of other versions are written again
_RADIUS = 0.25 * SIZE  # pixels, from a shape's center to its furthest point, before it pulses
_PULSE = 0.4  # the size's logarithm goes that far up and down
_ORBIT = 0.17 * SIZE  # pixels, radius of circles
_SWING = 0.22 * SIZE  # pixels, amplitude
_TURN = (0.25, 0.45)  # radians per frame: a star, alike after 1.26, turns by less than half of that
_RATE = (0.7, 0.95)  # radians per frame of circles, swings and pulses: 7 to 9 frames a period
_OUTLINE = 2.0  # pixels
_PAN = (1.5, 3.0)  # of the background, pixels per frame
_SHAKE = 0.75  # of the camera, pixels, standard deviation in each direction
_NOISE = 10.0  # of the sensor, levels, standard deviation
_BACKGROUND = (20.0, 130.0)  # levels of each color
_INK = (160.0, 250.0)


def render_clip(seed: int, split: str, index: int) -> tuple[np.ndarray, dict[str, int]]:
    """Draw clip `index` of a split: uint8 [FRAMES, SIZE, SIZE, 3] (RGB) and its labels.

    A pure function of its arguments. Any 64 consecutive indices hold every (shape, motion).
    Raises ValueError for a split other than "train" and "test".
    """
    random = generator(seed, split, index)
    motion, shape = index % len(MOTIONS), index // len(MOTIONS) % len(SHAPES)

    shake = _SHAKE * random.standard_normal((FRAMES, 2))
    pan = line(random.uniform(*_PAN), random.uniform(0, 2 * np.pi))
    place, angle, size = trajectory(motion, random)
    distance = SHAPES[shape](*_seen_from(place + shake, angle, size)) * size[:, None, None]
    if random.random() < 0.5:  # an outline, inside the edge
        distance = np.abs(distance + _OUTLINE / 2) - _OUTLINE / 2
    ink = (0.5 - distance).clip(0, 1)[..., None]

    dark, light = random.uniform(*_BACKGROUND, (2, 3))
    background = dark + (light - dark) * _pattern(random, pan + shake)[..., None]
    video = background + ink * (random.uniform(*_INK, 3) - background)
    video = video + _NOISE * random.standard_normal(video.shape)
    return video.clip(0, 255).round().astype(np.uint8), {"shape": shape, "motion": motion}


def trajectory(
    motion: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw how a shape moves.

    Returns:
        of each frame, float64: the place (y, x; pixels, beyond the frame where it wraps around)
        [FRAMES, 2], the angle (radians, clockwise) [FRAMES], the radius (pixels) [FRAMES].
    """
    time = np.arange(FRAMES)
    place = np.tile(random.uniform(0, SIZE, 2), (FRAMES, 1))
    angle = np.full(FRAMES, random.uniform(0, 2 * np.pi))
    turn, rate = random.uniform(*_TURN), random.uniform(*_RATE)
    start, beat = random.uniform(0, 2 * np.pi, 2)
    phase, pulse = start + rate * time, np.full(FRAMES, beat)
    match MOTIONS[motion].split():
        case "turns", way:
            angle = angle + (turn if way == "clockwise" else -turn) * time
        case "circles", way:
            phase = phase if way == "clockwise" else -phase
            place = place + _ORBIT * np.stack([np.sin(phase), np.cos(phase)], 1)
        case "swings", *way:
            place[:, 1 if way == ["sideways"] else 0] += _SWING * np.sin(phase)
        case ["pulses"]:
            pulse = phase
    return place, angle, _RADIUS * np.exp(_PULSE * np.sin(pulse))


def _seen_from(
    place: np.ndarray, angle: np.ndarray, size: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of the pixels in units of a shape's radius: right and down of its center, as it
    is turned, each [T, H, W]."""
    offset = np.arange(SIZE)[:, None] - place[:, None, :]  # [T, SIZE, 2]
    offset = ((offset + SIZE / 2) % SIZE - SIZE / 2) / size[:, None, None]
    down, right = offset[:, :, None, 0], offset[:, None, :, 1]
    cos, sin = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    return cos * right + sin * down, cos * down - sin * right


def _pattern(random: np.random.Generator, shift: np.ndarray) -> np.ndarray:
    """A gradient, stripes or checkers, moved by `shift` ([T, 2]: y, x; pixels): [T, H, W], 0 to 1.

    Whole waves fit into the frame, so the pattern wraps around.
    """
    kind = random.integers(3)
    waves = random.integers(2, 4, 2) if kind else random.choice([[0, 1], [1, 0], [1, 1]])
    waves = waves * random.choice([-1, 1], 2)
    at = 2 * np.pi * (np.arange(SIZE)[:, None] - shift[:, None, :]) / SIZE  # [T, SIZE, 2]
    at = at * waves + random.uniform(0, 2 * np.pi, 2)
    down, right = at[:, :, None, 0], at[:, None, :, 1]
    if kind == 2:
        return 0.5 + 0.5 * np.tanh(4 * np.sin(down) * np.sin(right))
    wave = np.sin(down + right)
    return 0.5 + 0.5 * (np.tanh(3 * wave) if kind else wave)


def _polygon(corners: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """A regular polygon with a corner to the right."""

    def distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        sector = 2 * np.pi / corners
        fold = (np.arctan2(y, x) % sector) - sector / 2
        return np.hypot(x, y) * np.cos(fold) - np.cos(sector / 2)

    return distance


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Five points; edges go from an outer corner at radius 1 to an inner one at 0.42."""
    sector = 2 * np.pi / 5
    fold = np.abs((np.arctan2(y, x) + sector / 2) % sector - sector / 2)  # 0 at an outer corner
    along, across = np.hypot(x, y) * np.cos(fold), np.hypot(x, y) * np.sin(fold)
    inner = 0.42 * np.cos(sector / 2), 0.42 * np.sin(sector / 2)
    edge = np.hypot(1 - inner[0], inner[1])
    return ((along - 1) * inner[1] + across * (1 - inner[0])) / edge


def _box(x: np.ndarray, y: np.ndarray, width: float, height: float) -> np.ndarray:
    """A rectangle of half these sides, centered."""
    return np.maximum(np.abs(x) - width, np.abs(y) - height)


def _cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.minimum(_box(x, y, 0.95, 0.3), _box(x, y, 0.3, 0.95))


def _bar(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return _box(x, y, 0.95, 0.3)


def _half_disc(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.hypot(x, y) - 1, -y)


def _crescent(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.hypot(x, y) - 1, 0.8 - np.hypot(x - 0.5, y))


def _corner(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.minimum(_box(x + 0.42, y, 0.28, 0.7), _box(x, y - 0.42, 0.7, 0.28))


# Signed distances to the edge, about, in units of the radius: below 0 inside. None looks alike
# after turning by less than twice _TURN.
SHAPES = (_polygon(3), _polygon(4), _star, _cross, _bar, _half_disc, _crescent, _corner)
