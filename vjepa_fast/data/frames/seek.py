"""Frames with their numbers, from the start of a file or from a key frame before a clip.

Frame i is the i-th frame that decoding the whole file yields. `index` finds out for each video
whether a seek can tell these numbers (`addressing.py`), and how:

- by time stamp: frame i is the one with the i-th time stamp;
- by order: a key frame that n frames are stored before is frame n, and those after it are counted.

Where the container's list has every frame (MP4, MOV), nothing before the key frame is read.
Elsewhere all packets are read, but not decoded. By time stamp, three kinds of frames that are not
wanted are not decoded: those that no other frame refers to; those that are stored, after a wanted
frame, before a key frame that no reference crosses; and those after the last wanted one. What a
seek finds is checked: the decoder must return all that it was given, in order of the numbers.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterable, Iterator
from heapq import heappop, heappush
from itertools import chain

import av

from vjepa_fast.data.ffmpeg import count_frame
from vjepa_fast.data.frames.roles import Role, Roles
from vjepa_fast.data.manifest.entry import Seek

# How many frames may be stored after a key frame and shown before it: decoders of H.264 and H.265
# may hold back 16 frames.
REORDERED = 16
_HELD = 256  # packets at most that wait for a key frame which makes them needless
# Below this frame, decoding from the first one is cheaper than finding the key frames.
NEAR_START = 32
_Numbered = Iterator[tuple[int, av.VideoFrame]]
_NumberedPackets = Iterator[tuple[int, av.Packet]]


class SeekError(Exception):
    """A seek did not lead to frames whose numbers are known; decode the file from its start."""


def numbered_frames(
    container: av.container.InputContainer,
    stream: av.video.stream.VideoStream,
    first: int,
    frames: int,
    seek: Seek,
    wanted: Iterable[int] | None = None,
) -> _Numbered:
    """Decode a video from its start, or from a key frame at or before the frame `first`.

    Args:
        container: the file, just opened.
        stream: its video stream.
        first: number of the first frame that is needed.
        frames: number of frames of the video.
        seek: how a seek finds a frame of this video; `Seek.NEVER` decodes from the start.
        wanted: the numbers of the frames that are needed; None: of all. With `Seek.BY_STAMP` others
            may be missing. After the last one come those only that the decoder has, too.

    Yields:
        (number, frame) in order of display. After a seek, frames before the key frame have any
        number below it.

    Raises:
        SeekError: see there.
        av.error.FFmpegError, EOFError: the file cannot be read.
    """
    needed = None if wanted is None else set(wanted)
    last = max(needed) if needed else frames
    if seek == Seek.NEVER:
        return _counted(container.demux(stream), stream, 0, last)
    listed = stream.index_entries
    if "mp4" not in container.format.name or len(listed) != frames or first >= frames:
        listed = None
    if seek == Seek.BY_ORDER:
        return _from_key_in_order(container, stream, first, last, listed)
    if first < NEAR_START:
        packets = _ranked(container.demux(stream), stream, 0)
        key = 0
    elif listed is not None:
        key, packets = _from_listed_key(container, stream, first, listed)
    else:
        key, packets = _from_stamped_key(container, stream, first)
    return _decoded(packets, stream, key, needed)


def _from_listed_key(
    container: av.container.InputContainer,
    stream: av.video.stream.VideoStream,
    first: int,
    listed: av.stream.IndexEntries,
) -> tuple[int, _NumberedPackets]:
    """With MP4's list of the frames in stored order: the number of a key frame, and the packets
    from there on.
    """
    # FFmpeg takes the time of decoding for one of showing and seeks to a bit before it.
    end = min(first + REORDERED + 1, len(listed))
    place = next((i for i in range(first + 1, end) if listed[i].is_keyframe), end) - 1
    while place >= 0:
        container.seek(listed[place].timestamp, stream=stream)
        packets = container.demux(stream)
        key = next(packets, None)
        if key is None or key.pts is None:
            raise SeekError
        start = next((i for i in range(place, -1, -1) if listed[i].pos == key.pos), None)
        if start is None:
            raise SeekError
        numbered = _ranked(chain([key], packets), stream, start)
        number, key = next(numbered)
        if number <= first:
            return number, chain([(number, key)], numbered)
        place = start - 1  # the key frame is stored before the frame, but shown after it
    raise SeekError


def _from_stamped_key(
    container: av.container.InputContainer, stream: av.video.stream.VideoStream, first: int
) -> tuple[int, _NumberedPackets]:
    """The same with the time stamps of all packets, which are read first."""
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
    numbered = (
        (number_of.get(packet.pts, -1) if count_frame(packet, codec) else -1, packet)
        for packet in container.demux(stream)
    )
    return number_of[key], numbered


def _ranked(
    packets: Iterable[av.Packet], stream: av.video.stream.VideoStream, start: int
) -> _NumberedPackets:
    """Packets with the numbers of their frames, -1 for packets without a frame of their own.

    Args:
        start: how many frames are stored and shown before the first of the packets.
    """
    # A frame's rank among the time stamps is known once all are read that are shown before it, so
    # packets are read ahead.
    codec = stream.codec_context.codec.canonical_name
    ahead: deque[tuple[av.Packet, bool]] = deque()
    stamps: list[int] = []

    def numbered() -> tuple[int, av.Packet]:
        packet, has_frame = ahead.popleft()
        return (start + bisect_left(stamps, packet.pts) if has_frame else -1), packet

    for packet in packets:
        has_frame = packet.pts is not None and count_frame(packet, codec)
        ahead.append((packet, has_frame))
        if has_frame:
            insort(stamps, packet.pts)
        if len(ahead) > REORDERED + 1:
            yield numbered()
    while ahead:
        yield numbered()


def _decoded(
    packets: _NumberedPackets,
    stream: av.video.stream.VideoStream,
    key: int,
    wanted: set[int] | None,
) -> _Numbered:
    """The frames of these packets, as far as needed for the wanted ones, with their numbers.

    Raises:
        SeekError: the frames from the key frame on are not those of the packets, one by one in
            order of their numbers; or the first of them is neither the video's first nor a key
            frame to the decoder: containers may call any frame so.
    """
    kept = set() if wanted is None else wanted | {-1, key}
    to_come = set() if wanted is None else set(wanted)
    number_of: dict[int, int] = {}  # by time stamp, of packets in the decoder
    due: list[int] = []  # the same numbers from `key` on, as a heap
    begun = False

    def checked(frames: Iterable[av.VideoFrame]) -> _Numbered:
        nonlocal begun
        for frame in frames:
            number = number_of.pop(frame.pts, -1)
            if number >= key or begun:
                if not due or heappop(due) != number or (number == key > 0 and not frame.key_frame):
                    raise SeekError
                begun = True
            yield number, frame

    for number, packet in packets if wanted is None else _needed(packets, Roles(stream), kept):
        if number >= 0:
            number_of[packet.pts] = number
        if number >= key:
            heappush(due, number)
        yield from checked(packet.decode())
        to_come.discard(number)
        if wanted is not None and not to_come:
            yield from checked(stream.decode(None))  # what the decoder holds back
            return


def _needed(packets: _NumberedPackets, role_of: Roles, kept: set[int]) -> _NumberedPackets:
    """The packets whose numbers are in `kept`, and those that they may need."""
    held: list[tuple[int, av.Packet]] = []  # needed if a kept one comes before the next start
    for number, packet in packets:
        role, is_kept = role_of(packet), number in kept
        if role is Role.UNUSED and not is_kept:
            continue
        if role is Role.START:
            held.clear()
        held.append((number, packet))
        if is_kept or role is Role.KEPT or len(held) > _HELD:
            yield from held
            held.clear()


def _from_key_in_order(
    container: av.container.InputContainer,
    stream: av.video.stream.VideoStream,
    first: int,
    last: int,
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
    return _beginning_with_key(_counted(chain([key], packets), stream, number, last))


def _counted(
    packets: Iterable[av.Packet], stream: av.video.stream.VideoStream, number: int, last: int
) -> _Numbered:
    """The frames of these packets, counted from `number`, to `last` and those that the decoder
    holds back then.
    """
    for packet in packets:
        for frame in packet.decode():
            yield number, frame
            number += 1
        if number > last:
            if packet.size:  # the empty one at the end has made the decoder return all
                yield from enumerate(stream.decode(None), number)
            return


def _beginning_with_key(numbered: _Numbered) -> _Numbered:
    number, frame = next(numbered, (-1, None))
    if frame is None or not frame.key_frame:  # to the decoder; containers may call any frame so
        raise SeekError
    yield number, frame
    yield from numbered
