"""Frames with their numbers, from the start of a file or from a key frame before a clip.

Frame i is the i-th frame that decoding the whole file yields. `index` finds out for each video
whether a seek can tell these numbers (`addressing.py`), and how:

- by time stamp: frame i is the one with the i-th time stamp;
- by order: a key frame that n frames are stored before is frame n, and those after it are counted.

Where the container's list has every frame (MP4, MOV), nothing before the key frame is read.
Elsewhere all packets are read, but not decoded. What a seek finds is checked: after it, the frames
must have consecutive numbers.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterator
from itertools import chain

import av

from vjepa_fast.data.ffmpeg import count_frame
from vjepa_fast.data.manifest.entry import Seek

# How many frames may be stored after a key frame and shown before it: decoders of H.264 and H.265
# may hold back 16 frames.
REORDERED = 16
_Numbered = Iterator[tuple[int, av.VideoFrame]]


class SeekError(Exception):
    """A seek did not lead to frames whose numbers are known; decode the file from its start."""


def numbered_frames(
    container: av.container.InputContainer,
    stream: av.video.stream.VideoStream,
    first: int,
    frames: int,
    seek: Seek,
) -> _Numbered:
    """Decode a video from its start, or from a key frame at or before the frame `first`.

    Args:
        container: the file, just opened.
        stream: its video stream.
        first: number of the first frame that is needed.
        frames: number of frames of the video.
        seek: how a seek finds a frame of this video; `Seek.NEVER` decodes from the start.

    Yields:
        (number, frame) in order of display. After a seek, frames before the key frame have any
        number below it.

    Raises:
        SeekError: see there.
        av.error.FFmpegError, EOFError: the file cannot be read.
    """
    if seek == Seek.NEVER:
        return enumerate(container.decode(stream))
    listed = stream.index_entries
    if "mp4" not in container.format.name or len(listed) != frames or first >= frames:
        listed = None
    if seek == Seek.BY_ORDER:
        return _from_key_in_order(container, stream, first, listed)
    if listed is not None:
        return _from_listed_key(container, stream, first, listed)
    return _from_stamped_key(container, stream, first)


def _from_listed_key(
    container: av.container.InputContainer,
    stream: av.video.stream.VideoStream,
    first: int,
    listed: av.stream.IndexEntries,
) -> _Numbered:
    """By time stamp, with MP4's list of the frames in stored order."""
    last = max(first - REORDERED, 0)
    container.seek(listed[last].timestamp, stream=stream)
    packets = container.demux(stream)
    key = next(packets, None)
    if key is None or key.pts is None:
        raise SeekError
    start = next((i for i in range(last, -1, -1) if listed[i].pos == key.pos), None)
    if start is None:
        raise SeekError
    # `start` frames are stored and shown before. A frame's rank among the time stamps is known
    # once all are read that are shown before it, so packets are read ahead.
    ahead: deque[av.Packet] = deque()
    stamps: list[int] = []

    def read(count: int) -> None:
        for packet in packets:
            ahead.append(packet)
            if packet.pts is not None and packet.size:
                insort(stamps, packet.pts)
            if len(ahead) >= count:
                return

    ahead.append(key)
    insort(stamps, key.pts)
    read(REORDERED + 1)
    key_number = start + bisect_left(stamps, key.pts)

    def decoded() -> Iterator[av.VideoFrame]:
        while ahead:
            packet = ahead.popleft()
            read(REORDERED + 1)
            yield from packet.decode()

    def number(stamp: int | None) -> int:
        i = bisect_left(stamps, stamp) if stamp is not None else len(stamps)
        return start + i if i < len(stamps) and stamps[i] == stamp else -1

    return _checked(((number(frame.pts), frame) for frame in decoded()), key_number)


def _from_stamped_key(
    container: av.container.InputContainer, stream: av.video.stream.VideoStream, first: int
) -> _Numbered:
    """By time stamp, of which all are read first."""
    codec = stream.codec_context.codec.canonical_name
    packets = [
        (packet.pts, packet.is_keyframe)
        for packet in container.demux(stream)
        if count_frame(packet, codec) and packet.pts is not None
    ]
    stamps = sorted(pts for pts, _ in packets)
    keys = sorted(pts for pts, is_key in packets if is_key)
    if first >= len(stamps) or not bisect_right(keys, stamps[first]):
        raise SeekError
    key = keys[bisect_right(keys, stamps[first]) - 1]
    if bisect_right(stamps, key) - bisect_left(stamps, key) > 1:  # which of two frames is it?
        raise SeekError
    container.seek(key, stream=stream)
    number_of = {pts: number for number, pts in enumerate(stamps)}
    frames = container.decode(stream)
    return _checked(((number_of.get(frame.pts, -1), frame) for frame in frames), number_of[key])


def _from_key_in_order(
    container: av.container.InputContainer,
    stream: av.video.stream.VideoStream,
    first: int,
    listed: av.stream.IndexEntries | None,
) -> _Numbered:
    """By order, from the last key frame that at most `first` frames are stored before."""
    if listed is not None:
        number = next((i for i in range(first, -1, -1) if listed[i].is_keyframe), None)
        where = None if number is None else (listed[number].timestamp, listed[number].pos)
    else:
        codec = stream.codec_context.codec.canonical_name
        number = where = None
        count = 0
        for packet in container.demux(stream):
            if not count_frame(packet, codec):
                continue
            if count > first:
                break
            if packet.is_keyframe:
                time = packet.dts if packet.dts is not None else packet.pts
                number, where = count, (time, packet.pos)
            count += 1
    if where is None or None in where:
        raise SeekError
    container.seek(where[0], stream=stream)
    packets = container.demux(stream)
    # Frames of one page of Ogg share a position.
    key = next((packet for packet in packets if packet.pos == where[1]), None)
    if key is None or not key.is_keyframe:
        raise SeekError
    frames = (frame for packet in chain([key], packets) for frame in packet.decode())
    return _checked(enumerate(frames, number), number)


def _checked(numbered: _Numbered, key: int) -> _Numbered:
    """Raise SeekError unless the frames from frame `key` on have consecutive numbers, and the first
    of them is a key frame to the decoder, too: containers may call any frame so.
    """
    expected = key
    for number, frame in numbered:
        if number >= key or expected > key:
            if number != expected or (number == key and not frame.key_frame):
                raise SeekError
            expected += 1
        yield number, frame
