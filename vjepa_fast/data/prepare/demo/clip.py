"""What the clips of all demo sets have in common: their size, their splits, their randomness."""

from __future__ import annotations

import numpy as np

SIZE = 32  # pixels, height and width of the frame
FRAMES = 8
FPS = 8
SPLITS = ("train", "test")


def generator(seed: int, split: str, index: int) -> np.random.Generator:
    """The random generator of clip `index` of a split, a pure function of its arguments.

    Raises:
        ValueError: a split other than "train" and "test".
    """
    if split not in SPLITS:
        raise ValueError(f"found split {split!r}, expected one of {SPLITS}; name one of them")
    counter = [0, 0, SPLITS.index(split), index]  # the two zeros count what this clip draws
    return np.random.Generator(np.random.Philox(key=seed, counter=counter))


def line(speed: float, angle: float) -> np.ndarray:
    """Positions of a motion at `speed` pixels per frame from 0 on: (y, x), float64 [FRAMES, 2]."""
    return speed * np.arange(FRAMES)[:, None] * np.array([np.sin(angle), np.cos(angle)])
