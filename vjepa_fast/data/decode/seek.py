"""Frame-exact seeking: decodes from the last key frame before a frame, with each frame's index.

Where the container's index lists every frame (MP4, MOV), nothing before that key frame is read.
Elsewhere (WebM, Matroska, MPEG-TS) all packets are counted, but not decoded.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from itertools import chain

import av

from vjepa_fast.data.ffmpeg import count_frame

# How many frames may be stored after a key frame and shown before it: decoders of H.264 and H.265
# may hold back 16 frames.
_REORDERED = 16
_Numbered = Iterator[tuple[int, av.VideoFrame]]


def frames_from(
    container: av.container.InputContainer,
    stream: av.video.stream.VideoStream,
    first: int,
    frames: int,
) -> _Numbered | None:
    """Decode from a key frame at or before the frame `first` on.

    Args:
        container: the opened file.
        stream: its video stream.
        first: index of the first frame that is needed.
        frames: number of frames of the video.

    Returns:
        (index, frame) in order of display; the index is -1 where it is unknown. None, with the
        container back at its start, where the time stamps do not allow it.
    """
    found = _by_index(container, stream, first, frames)
    return found if found is not None else _by_counting(container, stream, first)


def _by_index(
    container: av.container.InputContainer,
    stream: av.video.stream.VideoStream,
    first: int,
    frames: int,
) -> _Numbered | None:
    entries = stream.index_entries
    if "mp4" not in container.format.name or len(entries) != frames or first >= frames:
        return None
    last = max(first - _REORDERED, 0)
    container.seek(entries[last].timestamp, stream=stream)
    packets = container.demux(stream)
    opening = next(packets, None)
    if opening is not None and opening.pts is not None:
        for start in range(last, -1, -1):
            if entries[start].pos == opening.pos:
                return _ranked(opening, packets, start)
    container.seek(0)
    return None


def _ranked(key: av.Packet, packets: Iterator[av.Packet], start: int) -> _Numbered:
    """Number the frames from a key frame on, before which `start` frames are stored and shown. A
    frame's index is its rank by time stamp: all that are shown before it have been read by then.
    """
    stamps = [key.pts]
    for frame in key.decode():
        yield start, frame
    for packet in packets:
        if packet.pts is not None and packet.size:
            insort(stamps, packet.pts)
        for frame in packet.decode():
            known = frame.pts is not None and frame.pts in stamps
            yield (start + bisect_left(stamps, frame.pts) if known else -1), frame


def _by_counting(
    container: av.container.InputContainer, stream: av.video.stream.VideoStream, first: int
) -> _Numbered | None:
    codec = stream.codec_context.codec.canonical_name
    packets = [packet for packet in container.demux(stream) if count_frame(packet, codec)]
    stamps = sorted(packet.pts for packet in packets if packet.pts is not None)
    keys = sorted(packet.pts for packet in packets if packet.is_keyframe and packet.pts is not None)
    distinct = len(set(stamps)) == len(packets)
    if distinct and first < len(stamps) and bisect_right(keys, stamps[first]):
        key = keys[bisect_right(keys, stamps[first]) - 1]
        container.seek(key, stream=stream)
        frames = container.decode(stream)
        opening = next(frames, None)
        # Without an index in the container, a seek may land anywhere.
        if opening is not None and opening.pts is not None and opening.pts <= key:
            index_of = {pts: index for index, pts in enumerate(stamps)}
            return ((index_of.get(frame.pts, -1), frame) for frame in chain([opening], frames))
    container.seek(0)
    return None
