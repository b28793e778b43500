"""The matrix: every codec in every container, each structure, kind of time stamps and start."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatch
from functools import partial
from itertools import product
from pathlib import Path

from tests.data.frames.makers.numbered_videos import (
    ENCODINGS,
    Case,
    encode,
    in_decoding_order,
    moved,
    without_stamps,
)

CONTAINERS = ("mp4", "mov", "mkv", "webm", "avi", "ts", "flv", "wmv", "mxf", "vob", "mpg")
STARTS = {"zero": 0, "later": 125, "below": -50}  # the first time stamp, in frames
STAMPS = ("good", "decoding", "missing")

# What FFmpeg's muxers refuse, as patterns of names, and what they write and no demuxer knows.
REFUSED = (
    *(f"{codec}-*-webm" for codec in ("h264", "hevc", "mpeg4", "mpeg2", "mjpeg", "prores")),
    *(f"hevc-*-{container}" for container in ("avi", "wmv", "mxf")),
    *(f"mpeg4-*-{container}" for container in ("flv", "mxf")),
    "mpeg2-*-flv",
    *(f"vp8-*-{container}" for container in ("mp4", "mov", "flv", "mxf")),
    *(f"{codec}-*-{container}" for codec in ("vp9", "av1") for container in ("mov", "mxf")),
    *(f"mjpeg-*-{container}" for container in ("flv", "mxf")),
    *(f"prores-*-{container}" for container in ("mp4", "avi", "flv", "wmv")),
    *(
        f"{codec}-{structure}-missing-*-{container}"
        for codec, structure in product(("h264", "mpeg4"), ("bframes", "open"))
        for container in ("mp4", "mov", "mkv", "avi", "ts", "flv", "wmv", "vob", "mpg")
    ),
    *(
        f"mpeg2-*-missing-*-{container}"
        for container in ("mp4", "mov", "mkv", "avi", "ts", "wmv", "vob", "mpg")
    ),
)
UNREADABLE = tuple(
    f"{codec}-*-{container}"
    for codec in ("vp8", "vp9", "av1", "mjpeg", "prores")
    for container in ("ts", "vob", "mpg")
)


def matrix() -> list[Case]:
    """All files that can be written and read, named codec-structure-stamps-start-container."""
    return [
        case for case in points() if not any(fnmatch(case.name, p) for p in REFUSED + UNREADABLE)
    ]


def points() -> Iterator[Case]:
    """Also those that `REFUSED` and `UNREADABLE` name."""
    for codec, container, stamps, start in product(ENCODINGS, CONTAINERS, STAMPS, STARTS):
        if (stamps, start) in (("missing", "later"), ("missing", "below"), ("decoding", "below")):
            continue
        for structure in ENCODINGS[codec]:
            if structure in ("one_b", "deep"):  # of special situations only
                continue
            if stamps == "decoding" and structure not in ("bframes", "open"):
                continue  # the same as good ones
            name = f"{codec}-{structure}-{stamps}-{start}-{container}"
            yield Case(name, container, partial(_make, codec, structure, stamps, STARTS[start]))


def _make(codec: str, structure: str, stamps: str, start: int, path: Path) -> None:
    alter = {
        "good": moved(start),
        "decoding": lambda packets: moved(start)(list(in_decoding_order(packets))),
        "missing": without_stamps,
    }[stamps]
    options = {"avoid_negative_ts": "disabled"} if start < 0 else {}
    encode(codec, structure, path, alter=alter, options=options)
