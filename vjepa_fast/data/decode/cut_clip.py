"""A clip's part of a long video, as a small video of its own in memory.

The packets from the key frame before the clip to the clip's last frame are copied, without being
decoded, into a new file of the same kind (MP4, MOV; Matroska, WebM). Its pixels are those of the
whole file. What comes before and after is not read.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from math import ceil, floor

import av
import numpy as np
from av.stream import Discard

from vjepa_fast.data.ffmpeg import BadVideo, count_frame, open_video, video_stream
from vjepa_fast.data.manifest.entry import ManifestEntry
from vjepa_fast.data.manifest.location import entry_url

# Frames that may be stored before one that is shown earlier than they are: H.264 and H.265 let
# their decoders hold back 16, MPEG-4 one. The packets of the others come as they are shown.
_REORDERED = {"h264": 16, "hevc": 16, "mpeg4": 1}
# How far a frame of a constant rate may be from its place, in frames (`ManifestEntry.vfr`), and
# what rounding adds.
_OFF = 0.5 + 0.01
_IDR = 5  # H.264's NAL unit type of pictures after which nothing builds on earlier ones


@dataclass(frozen=True)
class Encoded:
    """An encoded video, uint8 [bytes], and which of its frames a clip shows: int64 [T]."""

    content: np.ndarray
    frames: np.ndarray


class _NoSegmentError(Exception):
    """Why not; nobody is told, since whoever reads the whole file does as well."""


@dataclass
class _Video:
    """The opened file of a manifest entry."""

    entry: ManifestEntry
    container: av.container.InputContainer
    stream: av.video.stream.VideoStream
    codec: str

    def gives_frame(self, packet: av.Packet) -> bool:
        return count_frame(packet, self.codec)

    @property
    def reordered(self) -> int:
        return _REORDERED.get(self.codec, 0)


def read_segment(entry: ManifestEntry, frames: np.ndarray, limit: int) -> Encoded | None:
    """The part of a video with its frames `frames` (indices, int64 [T]), renumbered.

    None where it has more than `limit` bytes, and where it can't be told without decoding which
    frames a part holds, or whether it stands alone: other containers; a variable rate, where the
    container does not list its frames; time stamps that are missing, double or cut by an edit list;
    frames stored after a key frame and shown before it. None too for what is damaged: whoever reads
    the whole file finds what is wrong.
    """
    first, last = int(frames.min()), int(frames.max())
    try:
        with open_video(entry_url(entry)) as container:
            stream = video_stream(container)
            if stream is None:
                return None
            codec = stream.codec_context.codec.canonical_name
            for other in set(container.streams) - {stream}:
                other.discard = Discard.all  # no sound is read
            video = _Video(entry, container, stream, codec)
            names = container.format.name.split(",")
            if "mp4" in names:
                start, packets = _listed_part(video, first, last, limit)
                content = _remuxed(video, packets, "mp4")
            elif "matroska" in names:
                start, packets = _timed_part(video, first, last, limit)
                content = _remuxed(video, packets, "matroska")
            else:
                return None
    except (av.error.FFmpegError, EOFError, OSError, BadVideo, _NoSegmentError):
        return None
    return Encoded(content, frames - start)


def _listed_part(video: _Video, first: int, last: int, limit: int) -> tuple[int, list[av.Packet]]:
    """As `_part`, by MP4's list of the frames in the order in which they are stored."""
    listed = video.stream.index_entries
    if len(listed) != video.entry.frames or first >= len(listed):
        raise _NoSegmentError("the list is of other frames")
    key = next((i for i in range(first, -1, -1) if listed[i].is_keyframe), None)
    if key is None:
        raise _NoSegmentError("no key frame")
    # FFmpeg compares with when a key frame is shown, and the list says when it is decoded.
    place = key
    while place < min(key + video.reordered, len(listed) - 1) and not listed[place + 1].is_keyframe:
        place += 1
    video.container.seek(listed[place].timestamp, stream=video.stream)
    packets = video.container.demux(video.stream)
    for packet in packets:
        if packet.pos == listed[key].pos:
            # What is stored before a key frame that stands alone is shown before it.
            return _part(video, chain([packet], packets), key, first, last, limit)
        if packet.pos is None or packet.pos > listed[key].pos:
            break
    raise _NoSegmentError("the seek missed")


def _timed_part(video: _Video, first: int, last: int, limit: int) -> tuple[int, list[av.Packet]]:
    """As `_part`, by the time stamps that the frames of a constant rate have."""
    if video.entry.vfr is not False or video.entry.fps <= 0:
        raise _NoSegmentError("a variable rate, or nobody knows")
    demuxed = video.container.demux(video.stream)
    head = list(islice(filter(video.gives_frame, demuxed), 1 + video.reordered))
    _check_alone(video, head)
    origin, rate = head[0].pts, video.entry.fps * float(video.stream.time_base)
    video.container.seek(origin + round((first + 0.5) / rate), stream=video.stream)
    packets = video.container.demux(video.stream)
    key = next(packets, None)
    if key is None or key.pts is None:
        raise _NoSegmentError("the seek missed")
    start = round((key.pts - origin) * rate)
    start, kept = _part(video, chain([key], packets), start, first, last, limit)
    stamps = sorted(packet.pts for packet in kept if video.gives_frame(packet))[: last - start + 1]
    off = [(stamp - origin) * rate - i for i, stamp in enumerate(stamps)]
    if not start == ceil(max(off) - _OFF) == floor(min(off) + _OFF):
        raise _NoSegmentError("the time stamps fit other indices as well")
    return start, kept


def _part(
    video: _Video, packets: Iterator[av.Packet], start: int, first: int, last: int, limit: int
) -> tuple[int, list[av.Packet]]:
    """The packets, as stored, of a key frame at or before index `first` up to what index `last`
    needs, and the key frame's index. `packets` begin with a key frame of index `start`.
    """
    kept: list[av.Packet] = []
    stamps: list[int] = []  # of the frames that they give
    size = 0
    for packet in packets:
        if packet.size == 0:
            continue
        if packet.pts is None or packet.is_corrupt or packet.is_discard:
            raise _NoSegmentError("a packet without a time stamp, or damaged, or cut away")
        if packet.is_keyframe and start + len(stamps) <= first:
            if max(stamps, default=packet.pts) > packet.pts:
                raise _NoSegmentError("a frame stored before a key frame and shown after it")
            start, kept, stamps, size = start + len(stamps), [], [], 0
        kept.append(packet)
        size += packet.size
        if size > limit:
            raise _NoSegmentError("too large")
        if video.gives_frame(packet):
            stamps.append(packet.pts)
        if len(stamps) > last - start + video.reordered:
            break
    if start > first or len(stamps) <= last - start:
        raise _NoSegmentError("not all of the frames")
    _check_alone(video, kept)
    needed = set(sorted(stamps)[: last - start + 1])
    while kept[-1].pts not in needed:
        kept.pop()
    return start, kept


def _check_alone(video: _Video, packets: list[av.Packet]) -> None:
    """Whether the frames that these packets give build on none before and none lies between them
    that comes later.
    """
    stamps = [packet.pts for packet in packets if video.gives_frame(packet)]
    if not packets or not packets[0].is_keyframe or None in stamps:
        raise _NoSegmentError("no key frame, or no time stamp")
    if len(set(stamps)) < len(stamps) or min(stamps) < packets[0].pts:
        raise _NoSegmentError("double time stamps, or frames shown before their key frame")
    if video.codec == "h264" and not _is_idr(packets[0], video.stream.codec_context.extradata):
        raise _NoSegmentError("a key frame that only begins to refresh the picture")


def _is_idr(packet: av.Packet, extradata: bytes | None) -> bool:
    """Whether an H.264 picture is one that forgets all before it (annex B, or as MP4 stores it)."""
    data = bytes(packet)
    if not extradata or extradata[0] != 1:
        return any(unit[0] & 31 == _IDR for unit in data.split(b"\0\0\1")[1:] if unit)
    width, place = (extradata[4] & 3) + 1, 0
    while place + width < len(data):
        if data[place + width] & 31 == _IDR:
            return True
        place += width + int.from_bytes(data[place : place + width])
    return False


def _remuxed(video: _Video, packets: list[av.Packet], container: str) -> np.ndarray:
    """The packets as a file, uint8 [bytes], whose time starts at 0."""
    file, origin = io.BytesIO(), packets[0].pts
    with av.open(file, "w", format=container) as output:
        try:
            copy = output.add_stream_from_template(video.stream, opaque=True)  # needs no encoder
        except ValueError as error:
            raise _NoSegmentError(str(error)) from None
        copy.time_base = video.stream.time_base
        for packet in packets:
            packet.pts -= origin
            if packet.dts is not None:
                packet.dts -= origin
            packet.stream = copy
            output.mux(packet)
    return np.frombuffer(file.getbuffer(), np.uint8)
