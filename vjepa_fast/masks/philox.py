"""Stateless randomness for masks/ and data/: Philox4x32-10 and the streams of all random choices.

Word i of the sequence (seed, stream, index) is word i % 4 of `philox4x32` at
counter (i // 4, stream, index_low, index_high) and key (seed_low, seed_high), so any word can be
computed without the ones before it. csrc/philox.h gives the same numbers.
Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from vjepa_fast.masks._checks import require_int

# Mask streams 1, 2, 7 to 10; data streams 3 to 6 and 13; fine-tuning 14 to 17. csrc/philox.h
# has the mask streams.
STREAM_BLOCK_SIZE = 1
STREAM_BLOCK_POSITION = 2
STREAM_VIDEO_ORDER = 3
STREAM_CLIP_START = 4
STREAM_CROP = 5
STREAM_FLIP = 6
STREAM_MIXTURE = 7
STREAM_KEPT_TOKENS = 8
STREAM_TRUNCATE_CONTEXT = 9
STREAM_TRUNCATE_TARGET = 10
STREAM_PROBE_ORDER = 11
STREAM_VALIDATION = 12
STREAM_PROBE_SAMPLE = 13
STREAM_DROP_PATH = 14
STREAM_DROPOUT = 15
STREAM_AUGMENT = 16
STREAM_MIX = 17

_ROUNDS = 10
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def substream(stream: int, part: int) -> int:
    """A part of a stream, e.g. of one mask spec: stream in the low 8 bits, part in the 24 above."""
    require_int("stream", stream, 0, 2**8)
    require_int("part", part, 0, 2**24)
    return stream | part << 8


def philox4x32(counter: ArrayLike, key: tuple[int, int]) -> np.ndarray:
    """Ten Philox rounds: counter uint32 [..., 4], key two 32-bit words → uint32 [..., 4]."""
    c0, c1, c2, c3 = np.moveaxis(np.asarray(counter, dtype=np.uint64), -1, 0)
    k0, k1 = key
    for _ in range(_ROUNDS):
        p0, p1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            (p1 >> _HALF) ^ c1 ^ np.uint64(k0),
            p1 & _LOW,
            (p0 >> _HALF) ^ c3 ^ np.uint64(k1),
            p0 & _LOW,
        )
        k0, k1 = (k0 + _KEY_STEPS[0]) % 2**32, (k1 + _KEY_STEPS[1]) % 2**32
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def draw(seed: int, stream: int, index: ArrayLike, count: int) -> np.ndarray:
    """The first `count` words of each sequence (seed, stream, index).

    Args:
        seed: 0 .. 2**64 - 1.
        stream: 0 .. 2**32 - 1.
        index: integers of any shape, each 0 .. 2**63 - 1.
        count: words of each sequence.

    Returns:
        uint32 [*shape of index, count].

    Raises:
        ValueError: an argument out of range.
    """
    blocks = -(-count // 4)
    words = _blocks(seed, stream, index, 0, blocks)
    return words.reshape(*words.shape[:-2], 4 * blocks)[..., :count]


def uniform(words: np.ndarray) -> np.ndarray:
    """uint32 words → float64 in [0, 1), exactly word / 2**32."""
    return np.asarray(words, dtype=np.float64) * 2.0**-32


def bounded(seed: int, stream: int, index: ArrayLike, bound: ArrayLike) -> np.ndarray:
    """One unbiased integer in [0, bound) per index.

    Args:
        seed, stream, index: as for `draw`.
        bound: 1 .. 2**32 - 1, broadcast against index.

    Returns:
        int64 of the broadcast shape, the numbers of
        `PhiloxSequence(seed, stream, index).bounded(bound)`.
    """
    index, bound = np.broadcast_arrays(_indices(index), np.asarray(bound))
    if bound.dtype.kind not in "iu":
        raise ValueError(f"bound: found type {bound.dtype}, expected integers; give integers")
    if bound.size and (bound.min() < 1 or bound.max() >= 2**32):
        raise ValueError(
            f"bound: found {bound.min()} .. {bound.max()}, expected 1 .. 2**32-1; "
            "give a bound in that range"
        )
    shape, index, bound = index.shape, index.ravel(), bound.ravel().astype(np.uint64)
    threshold = np.uint64(2**32) % np.maximum(bound, np.uint64(1))
    result = np.empty(index.shape, dtype=np.int64)
    pending, block = np.arange(index.size), 0
    while pending.size:
        words = _blocks(seed, stream, index[pending], block, 1)[:, 0].astype(np.uint64)
        product = words * bound[pending, None]
        accepted = (product & _LOW) >= threshold[pending, None]
        first = accepted.argmax(axis=1)
        done = accepted.any(axis=1)
        result[pending[done]] = (product[done, first[done]] >> _HALF).astype(np.int64)
        pending, block = pending[~done], block + 1
    return result.reshape(shape)


class PhiloxSequence:
    """Reads the words of one sequence (seed, stream, index) in order, as csrc/philox.h does."""

    def __init__(self, seed: int, stream: int, index: int) -> None:
        self._position = (seed, stream, index)
        self._block = 0
        self._words: list[int] = []

    def word(self) -> int:
        """The next 32-bit word."""
        if not self._words:
            self._words = _blocks(*self._position, self._block, 1)[0, ::-1].tolist()
            self._block += 1
        return self._words.pop()

    def uniform(self) -> float:
        """The next word as a float in [0, 1)."""
        return self.word() * 2.0**-32

    def bounded(self, bound: int) -> int:
        """The next unbiased integer in [0, bound), 1 <= bound < 2**32.

        Biased words are redrawn (Lemire, "Fast random integer generation in an interval", 2019).
        """
        if not 1 <= bound < 2**32:
            raise ValueError(
                f"bound: found {bound}, expected 1 .. 2**32-1; give a bound in that range"
            )
        threshold = 2**32 % bound
        while True:
            product = self.word() * bound
            if product % 2**32 >= threshold:
                return product >> 32


def _blocks(seed: int, stream: int, index: ArrayLike, first: int, count: int) -> np.ndarray:
    """Philox blocks first .. first+count-1 of each sequence: uint32 [*shape of index, count, 4]."""
    require_int("seed", seed, 0, 2**64)
    require_int("stream", stream, 0, 2**32)
    index = _indices(index)
    counter = np.empty((*index.shape, count, 4), dtype=np.uint64)
    counter[..., 0] = np.arange(first, first + count, dtype=np.uint64)
    counter[..., 1] = stream
    counter[..., 2] = (index & _LOW)[..., None]
    counter[..., 3] = (index >> _HALF)[..., None]
    return philox4x32(counter, (int(seed) % 2**32, int(seed) >> 32))


def _indices(index: ArrayLike) -> np.ndarray:
    index = np.asarray(index)
    if index.size == 0:
        return index.astype(np.uint64)
    if index.dtype.kind not in "iu":
        raise ValueError(f"index: found type {index.dtype}, expected integers; give integers")
    if index.min() < 0 or index.max() >= 2**63:
        raise ValueError(
            f"index: found {index.min()} .. {index.max()}, expected 0 .. 2**63-1; "
            "give a position in that range"
        )
    return index.astype(np.uint64)
