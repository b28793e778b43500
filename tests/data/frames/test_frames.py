"""Every frame of every clip is the one that a full decode from the start gives, for videos of all
kinds; the manifest's count is that decode's, and copies show the same frames.

The default run takes the situations of which users reported wrong frames and a sample of the rest;
`make test-all` takes all. `python -m tests.data.frames.check NAME` tells what is wrong with a case.
"""

import random
import re
from collections import Counter
from fnmatch import fnmatch

import av
import numpy as np
import pytest

from tests.data.frames.check import all_cases, check, reference
from tests.data.frames.makers.matrix import REFUSED, UNREADABLE, matrix, points
from tests.data.frames.makers.numbered_videos import HEIGHT, WIDTH, encode, numbers, picture

_CASES = {case.name: case for case in all_cases()}
_REPORTED = (
    "h264-bframes-good-zero-avi",
    "h264-open-decoding-zero-mp4",
    "h264-bframes-decoding-later-ts",
    "packed-mpeg4-one_b-avi",
    "cut_dts-h264-open-mkv",
    "cut_pts-hevc-open-mp4",
    "edits_short-h264-bframes-mp4",
    "wrap60-h264-bframes-ts",
    "fields_each-h264-bframes-mkv",
    "h264-open-good-below-ts",
    "h264-plain-good-below-flv",
)
_SAMPLE = random.Random(20).sample(sorted(_CASES), 12)


def _named(names, starts):
    return [
        pytest.param(
            name,
            starts if name in (*_REPORTED, *_SAMPLE) else 10,
            id=name,
            marks=[] if name in (*_REPORTED, *_SAMPLE) else pytest.mark.slow,
        )
        for name in names
    ]


@pytest.mark.parametrize(("name", "starts"), _named(_CASES, 5))
def test_clips_copies_and_counts_are_those_of_a_full_decode(tmp_path, name, starts):
    case = _CASES[name]
    path = tmp_path / f"{name}.{case.suffix}"
    case.make(path)
    verdict = check(path, starts, dali=True, copy=True)
    assert verdict.faults(case) == []
    assert case.refused or sum(verdict.clips["pyav"].values()) >= 6


def test_the_matrix_is_whole():
    """A pair of codec and container that a new FFmpeg refuses must not go unnoticed."""
    assert set(_REPORTED) <= set(_CASES) and len(_CASES) == len(all_cases())
    containers = {
        codec: len({case.suffix for case in matrix() if case.name.startswith(codec)})
        for codec in ("h264", "hevc", "mpeg4", "mpeg2", "vp8", "vp9", "av1", "mjpeg", "prores")
    }
    assert containers == {
        "h264": 10,
        "hevc": 7,
        "mpeg4": 8,
        "mpeg2": 9,
        "vp8": 4,
        "vp9": 6,
        "av1": 6,
        "mjpeg": 5,
        "prores": 3,
    }
    kinds = Counter(tuple(case.name.split("-")[2:4]) for case in matrix())
    assert set(kinds) == {
        ("good", "zero"),
        ("good", "later"),
        ("good", "below"),
        ("decoding", "zero"),
        ("decoding", "later"),
        ("missing", "zero"),
    }


@pytest.mark.slow
@pytest.mark.parametrize("pattern", REFUSED + UNREADABLE)
def test_what_the_matrix_leaves_out_cannot_be_written_or_read(tmp_path, pattern):
    for case in points():
        if fnmatch(case.name, pattern):
            path = tmp_path / f"{case.name}.{case.suffix}"
            with pytest.raises((av.error.FFmpegError, ValueError, IndexError, AttributeError)):
                _made_and_read(case, path)


def _made_and_read(case, path):
    case.make(path)
    reference(path)


def test_numbers_are_read_at_any_size_and_pieced_pictures_are_told():
    shown = np.stack([picture(i) for i in range(256)])
    assert numbers(shown) == list(range(256))
    assert numbers(shown[:, ::2, ::2]) == list(range(256))
    pieced = shown[85].copy()
    pieced[: HEIGHT // 2, : WIDTH // 2] = shown[170][: HEIGHT // 2, : WIDTH // 2]
    assert numbers(pieced[None]) == [-1]


def test_the_check_tells_a_wrong_file_from_the_right_one(tmp_path, monkeypatch):
    path = encode("mjpeg", "plain", tmp_path / "video.avi")
    case = _CASES["mjpeg-plain-good-zero-avi"]
    assert check(path, 3).faults(case) == []
    other = reference(path)
    other[119] = 120
    monkeypatch.setattr("tests.data.frames.check.decoded", lambda _: (other, None))
    [fault] = check(path, 3).faults(case)
    assert re.fullmatch(r"pyav wrong: wanted .* 120\], found .* 119\]", fault)
    monkeypatch.setattr("tests.data.frames.check.decoded", lambda _: (other[:-1], None))
    assert "the manifest says 120 of 119 frames" in check(path, 3).faults(case)
