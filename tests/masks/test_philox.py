"""Philox against the published known answers, and the documented properties of its streams."""

import numpy as np
import pytest

from vjepa_fast.masks import _sampler, philox

# From Random123's kat_vectors file, philox4x32 with 10 rounds: counter, key, answer.
KNOWN_ANSWERS = [
    (
        (0x00000000, 0x00000000, 0x00000000, 0x00000000),
        (0x00000000, 0x00000000),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    (
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_known_answers(counter, key, answer):
    assert tuple(philox.philox4x32(counter, key).tolist()) == answer
    assert tuple(_sampler.philox4x32(counter, key)) == answer


def test_many_counters_at_once():
    counters = np.array([counter for counter, _, _ in KNOWN_ANSWERS], dtype=np.uint32)
    for row, counter in zip(philox.philox4x32(counters, (5, 6)), counters, strict=True):
        assert (row == philox.philox4x32(counter, (5, 6))).all()


def test_draw_lays_out_counter_and_key_as_documented():
    seed, stream, index = 0x299F31D0A4093822, 0x85A308D3, 0x0370734413198A2E
    counters = [(block, stream, 0x13198A2E, 0x03707344) for block in range(3)]
    expected = philox.philox4x32(counters, (0xA4093822, 0x299F31D0)).ravel()
    assert (philox.draw(seed, stream, index, 10) == expected[:10]).all()


def test_draw_keeps_the_shape_of_the_index():
    words = philox.draw(1, 2, np.array([[7, 8, 9]]), 5)
    assert words.shape == (1, 3, 5) and words.dtype == np.uint32
    assert (words[0, 1] == philox.draw(1, 2, 8, 5)).all()
    assert philox.draw(1, 2, np.array([], dtype=np.int64), 5).shape == (0, 5)
    assert philox.draw(1, 2, [3, 4], 0).shape == (2, 0)


def test_every_argument_changes_the_words():
    words = {
        philox.draw(*arguments, 4).tobytes()
        for arguments in [
            (0, 0, 0),
            (1, 0, 0),
            (2**32, 0, 0),
            (0, 1, 0),
            (0, 256, 0),
            (0, 0, 1),
            (0, 0, 2**32),
        ]
    }
    assert len(words) == 7


def test_uniform_is_below_one():
    values = philox.uniform(np.array([0, 2**31, 2**32 - 1], dtype=np.uint32))
    assert values.tolist() == [0.0, 0.5, 1 - 2.0**-32]


@pytest.mark.parametrize("bound", [1, 2, 3, 14, 1000, 2**31 + 1, 3 * 2**30 + 1, 2**32 - 1])
def test_bounded_agrees_with_the_sequence(bound):
    values = philox.bounded(3, 4, np.arange(300), bound)
    assert values.tolist() == [philox.PhiloxSequence(3, 4, i).bounded(bound) for i in range(300)]
    assert values.min() >= 0 and values.max() < bound


def test_bounded_redraws_biased_words():
    # Without rejection a bound of 3 * 2**30 gives multiples of 3 twice as often as others.
    values = philox.bounded(0, 0, np.arange(60_000), 3 * 2**30)
    assert np.abs(np.bincount(values % 3) / 20_000 - 1).max() < 0.03


def test_bounded_takes_a_bound_per_index():
    bounds = np.array([1, 5, 2**32 - 1])
    values = philox.bounded(0, 0, np.arange(3), bounds)
    assert values.tolist() == [philox.bounded(0, 0, i, b).item() for i, b in enumerate(bounds)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: philox.draw(-1, 0, 0, 1), "^seed: found -1"),
        (lambda: philox.draw(2**64, 0, 0, 1), "^seed: "),
        (lambda: philox.draw(1.5, 0, 0, 1), "^seed: found 1.5"),
        (lambda: philox.draw(0, 2**32, 0, 1), "^stream: "),
        (lambda: philox.draw(0, 0, -1, 1), "index"),
        (lambda: philox.draw(0, 0, 0.5, 1), "^index: found type float64"),
        (lambda: philox.bounded(0, 0, 0, 0), "^bound: found 0"),
        (lambda: philox.bounded(0, 0, 0, 2**32), "^bound: found 4294967296"),
        (lambda: philox.PhiloxSequence(0, 0, 0).bounded(0), "^bound: found 0"),
        (lambda: philox.substream(256, 0), "^stream: found 256"),
        (lambda: philox.substream(0, 2**24), "^part: "),
    ],
)
def test_bad_arguments_are_rejected(call, message):
    with pytest.raises(ValueError, match=message):
        call()
