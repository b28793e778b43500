"""How the frames of a video are found: learned once by `index`, by decoding as training does.

Time stamps tell the order of frames in most files. They do not where a container stores none (AVI),
where a recorder wrote the order of decoding, where two packets make a frame, or where frames that
refer to a missing one are dropped. A file without a sign of that is decoded at its start, at a key
frame in its middle, at its last key frame and across gaps, and the frames must have consecutive
time stamps. Any other file is decoded as a whole, and each way of seeking has to find the same
pictures.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import av
import numpy as np

from vjepa_fast.data.ffmpeg import (
    BadVideo,
    open_video,
    seconds_from_first,
    times_of_frames,
    video_stream,
)
from vjepa_fast.data.frames.packets import Packets
from vjepa_fast.data.frames.seek import NEAR_START, REORDERED, SeekError, numbered_frames
from vjepa_fast.data.manifest.entry import Seek

_AT_START = 20  # frames decoded at the start: decoders hold back up to 16
_AFTER_SEEK = 8  # frames compared after a seek
_SEEKS = 4  # places at which each way of seeking is tried
_GAP = 1.8  # times the usual step from a time stamp to the next
_GAPS = 8  # that are looked at


@dataclass(frozen=True)
class Addressing:
    """The frames of a video.

    Attributes:
        frames: how many decoding yields.
        seek: how a seek finds them.
        times: seconds from the first frame on, float64 [frames], ascending; None where not every
            frame has a time stamp.
        first: the first frame.
    """

    frames: int
    seek: Seek
    times: np.ndarray | None
    first: av.VideoFrame


@dataclass(frozen=True, slots=True)
class _Frame:
    """What is remembered of a decoded frame; `picture` is a checksum of some of its rows."""

    pts: int | None
    picture: int
    is_key: bool
    is_corrupt: bool


def find_addressing(
    url: str, index: int | None, packets: Packets, deep: bool = False
) -> Addressing:
    """Find out how the frames of a video are addressed.

    Args:
        url: of the file, for `open_video`.
        index: of the stream, for `video_stream`.
        packets: what demuxing it found.
        deep: decode the whole file in any case.

    Raises:
        BadVideo: no frame can be decoded; the picture changes its size; or a frame is corrupt that
            cannot be passed (with `deep`: any frame).
        av.error.FFmpegError, EOFError: the file cannot be read or decoded.
    """
    with _opened(url, index) as (container, stream):
        time_base = stream.time_base
        start = list(islice(container.decode(stream), _AT_START))
    if not start:
        raise BadVideo("damaged (no frame can be decoded)")
    plain = not (deep or packets.doubts) and _is_plain(
        url, index, packets, [frame.pts for frame in start]
    )
    if plain:
        times = seconds_from_first(packets.stamps, time_base, packets.frames)
        return Addressing(packets.frames, Seek.BY_STAMP, times, start[0])
    decoded = _decode_all(url, index, deep)
    seek = _best_seek(url, index, packets, decoded)
    if seek == Seek.NEVER or deep:
        _check_intact(decoded)
    times = seconds_from_first(packets.stamps, time_base, len(decoded))
    if times is None:
        times = times_of_frames([frame.pts for frame in decoded], time_base)
    return Addressing(len(decoded), seek, times, start[0])


@contextmanager
def _opened(
    url: str, index: int | None
) -> Iterator[tuple[av.container.InputContainer, av.video.stream.VideoStream]]:
    """The file, opened again: seeking to 0 is not the start of every file."""
    with open_video(url) as container:
        stream = video_stream(container, index)
        if stream is None:
            raise BadVideo("no video stream")
        yield container, stream


def _is_plain(url: str, index: int | None, packets: Packets, start: list[int | None]) -> bool:
    """Whether the frames at the start, in the middle, at the end and after gaps in the time stamps
    are those that the time stamps tell.
    """
    count = len(start)
    if start != sorted(packets.stamps)[:count]:
        return False
    if count < _AT_START or count == packets.frames:
        return count == packets.frames
    last = packets.keys[-1] if packets.keys else 0
    places = {packets.keys[len(packets.keys) // 2], last} if packets.keys else set()
    for key in places - {0}:
        until = packets.frames if key == last else min(key + _AFTER_SEEK, packets.frames)
        # The key frame may be shown so much later than it is stored.
        first = min(key + REORDERED, packets.frames - 1)
        if not _seek_reaches(url, index, packets.frames, first, until):
            return False
    for before in _gaps(packets.stamps):
        until = min(before + 1 + _AFTER_SEEK, packets.frames)
        if not _seek_reaches(url, index, packets.frames, before, until):
            return False
    return last > 0 or _decodes_to(url, index, packets.frames)


def _gaps(stamps: list[int]) -> list[int]:
    """The frames before a gap, where a packet may be missing: decoders then drop all frames up to
    the next key frame. At most some, evenly spread, since a variable frame rate has many.
    """
    steps = np.diff(np.sort(stamps))
    gaps = np.flatnonzero(steps > _GAP * np.median(steps))
    if len(gaps) > _GAPS:
        gaps = gaps[np.linspace(0, len(gaps) - 1, _GAPS).astype(int)]
    return gaps.tolist()


def _seek_reaches(url: str, index: int | None, frames: int, first: int, until: int) -> bool:
    """Whether a seek to frame `first` yields all frames to `until`, and no more at the end."""
    seen = -1
    try:
        with _opened(url, index) as (container, stream):
            for number, _ in numbered_frames(container, stream, first, frames, Seek.BY_STAMP):
                seen = number
                if until < frames and number >= until:
                    break
    except (SeekError, av.error.FFmpegError):
        return False
    return seen >= until - 1 and seen < frames


def _decodes_to(url: str, index: int | None, frames: int) -> bool:
    """Whether decoding from the start yields so many frames."""
    with _opened(url, index) as (container, stream):
        return sum(1 for _ in container.decode(stream)) == frames


def _decode_all(url: str, index: int | None, deep: bool) -> list[_Frame]:
    decoded: list[_Frame] = []
    size = None
    with _opened(url, index) as (container, stream):
        if deep:
            stream.codec_context.options = {"err_detect": "explode"}
        for frame in container.decode(stream):
            found = frame.width, frame.height
            size = size or found
            if found != size:
                changes = f"{size[0]}x{size[1]}, {found[0]}x{found[1]}"
                raise BadVideo(f"changes its size ({changes})")
            picture = _checksum(frame)
            decoded.append(_Frame(frame.pts, picture, frame.key_frame, frame.is_corrupt))
    return decoded


def _checksum(frame: av.VideoFrame) -> int:
    """Of every fourth row of the first plane."""
    plane = frame.planes[0]
    rows = np.frombuffer(plane, np.uint8).reshape(plane.height, -1)
    return zlib.crc32(np.ascontiguousarray(rows[::4, : plane.width]))


def _best_seek(url: str, index: int | None, packets: Packets, decoded: list[_Frame]) -> Seek:
    """The first way of seeking that finds the decoded pictures."""
    frames = len(decoded)
    ways = []
    if [frame.pts for frame in decoded] == sorted(packets.stamps):
        ways.append(Seek.BY_STAMP)
    keys = [number for number, frame in enumerate(decoded) if frame.is_key]
    if frames == packets.frames and keys == packets.keys:
        ways.append(Seek.BY_ORDER)
    places = []
    if frames > NEAR_START:  # shorter ones are never sought
        places = np.linspace(NEAR_START, frames - 1, _SEEKS).astype(int).tolist()
    for way in ways:
        if all(_finds(url, index, decoded, place, way) for place in places):
            return way
    return Seek.NEVER


def _finds(url: str, index: int | None, decoded: list[_Frame], first: int, seek: Seek) -> bool:
    """Whether a seek to frame `first` finds it and the next ones."""
    wanted = list(range(first, min(first + _AFTER_SEEK, len(decoded))))
    found = []
    try:
        with _opened(url, index) as (container, stream):
            for number, frame in numbered_frames(container, stream, first, len(decoded), seek):
                if number >= first and len(found) < len(wanted):
                    found.append((number, _checksum(frame)))
                if len(found) == len(wanted):
                    break
    except (SeekError, av.error.FFmpegError):
        return False
    return found == [(number, decoded[number].picture) for number in wanted]


def _check_intact(decoded: list[_Frame]) -> None:
    """Raise BadVideo if a frame is corrupt, other than the first ones, which may refer to frames
    that a cut removed.
    """
    intact = next((i for i, frame in enumerate(decoded) if not frame.is_corrupt), 0)
    for number, frame in enumerate(decoded[intact:], intact):
        if frame.is_corrupt:
            raise BadVideo(f"damaged (frame {number} is corrupt)")
