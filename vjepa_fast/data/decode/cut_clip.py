"""Cuts the part of a video that holds a clip into a small video in memory, without decoding.

The packets from the key frame before the clip to the clip's last frame are remuxed into a file of
the same kind (MP4, MOV; Matroska, WebM), which decodes to the same pixels. The packets before and
after are not read. DALI's CPU decoder needs this: it decodes every video from its first frame.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from math import ceil, floor

import av
import numpy as np
from av.stream import Discard

from vjepa_fast.data.ffmpeg import BadVideo, count_frame, open_video, video_stream
from vjepa_fast.data.manifest.entry import ManifestEntry, Seek
from vjepa_fast.data.manifest.location import entry_url

# How many frames may be stored ahead of one that is shown before them: decoders of H.264 and H.265
# may hold back 16 frames, of MPEG-4 one. Other codecs store frames in the order of display.
_REORDERED = {"h264": 16, "hevc": 16, "mpeg4": 1}
# How far a frame of a constant rate may be from its due time (`ManifestEntry.vfr`): half a frame,
# and a millisecond, to which WebM rounds.
_OFF_FRAMES, _OFF_SECONDS = 0.5 + 0.01, 0.001
_IDR = 5  # H.264's NAL unit type of a picture after which no frame refers to earlier ones


@dataclass(frozen=True)
class EncodedClip:
    """An encoded video, uint8 [bytes], and which of its frames a clip shows: int64 [T]."""

    content: np.ndarray
    frames: np.ndarray


class _CannotCutError(Exception):
    """Why a part cannot be cut out. Not reported: decoding the whole file works as well."""


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


def cut_clip(entry: ManifestEntry, frames: np.ndarray, limit: int) -> EncodedClip | None:
    """Cut out the part of a video that holds a clip.

    Args:
        entry: the video.
        frames: the clip's frame indices, int64 [T].
        limit: bytes that the part may have.

    Returns:
        The part and the indices in it. None where it is larger than `limit`; where the packets
        alone do not tell which frames it holds or whether it decodes by itself (frames that are not
        addressed by time stamp; another container;
        a variable rate in Matroska; time stamps that are missing, duplicated or removed by an edit
        list; frames stored after a key frame and shown before it); and where the file is damaged,
        since decoding the whole file finds the reason.
    """
    if entry.seek != Seek.BY_STAMP:
        return None
    first, last = int(frames.min()), int(frames.max())
    try:
        with open_video(entry_url(entry)) as container:
            stream = video_stream(container, entry.stream)
            if stream is None:
                return None
            codec = stream.codec_context.codec.canonical_name
            for other in set(container.streams) - {stream}:
                other.discard = Discard.all  # skip the audio
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
    except (av.error.FFmpegError, EOFError, OSError, BadVideo, _CannotCutError):
        return None
    return EncodedClip(content, frames - start)


def _listed_part(video: _Video, first: int, last: int, limit: int) -> tuple[int, list[av.Packet]]:
    """`_part` by MP4's list of the frames in stored order."""
    listed = video.stream.index_entries
    if len(listed) != video.entry.frames or first >= len(listed):
        raise _CannotCutError("the list has other frames")
    key = next((i for i in range(first, -1, -1) if listed[i].is_keyframe), None)
    if key is None:
        raise _CannotCutError("no key frame")
    # FFmpeg seeks by presentation time; the list has decoding times, which are earlier.
    target, end = key, min(key + video.reordered, len(listed) - 1)
    while target < end and not listed[target + 1].is_keyframe:
        target += 1
    video.container.seek(listed[target].timestamp, stream=video.stream)
    packets = video.container.demux(video.stream)
    for packet in packets:
        if packet.pos == listed[key].pos:
            # Frames stored before an independent key frame are shown before it.
            return _part(video, chain([packet], packets), key, first, last, limit)
        if packet.pos is None or packet.pos > listed[key].pos:
            break
    raise _CannotCutError("the seek missed")


def _timed_part(video: _Video, first: int, last: int, limit: int) -> tuple[int, list[av.Packet]]:
    """`_part` by time stamps, which give frame indices where the rate is constant."""
    if video.entry.vfr is not False or video.entry.fps <= 0:
        raise _CannotCutError("a variable rate, or an unknown one")
    demuxed = video.container.demux(video.stream)
    head = list(islice(filter(video.gives_frame, demuxed), 1 + video.reordered))
    _check_alone(video, head)
    origin, rate = head[0].pts, video.entry.fps * float(video.stream.time_base)
    video.container.seek(origin + round((first + 0.5) / rate), stream=video.stream)
    packets = video.container.demux(video.stream)
    key = next(packets, None)
    if key is None or key.pts is None:
        raise _CannotCutError("the seek missed")
    start = round((key.pts - origin) * rate)
    start, kept = _part(video, chain([key], packets), start, first, last, limit)
    stamps = sorted(packet.pts for packet in kept if video.gives_frame(packet))[: last - start + 1]
    off = [(stamp - origin) * rate - i for i, stamp in enumerate(stamps)]
    most = _OFF_FRAMES + _OFF_SECONDS * video.entry.fps
    if not start == ceil(max(off) - most) == floor(min(off) + most):
        raise _CannotCutError("the time stamps fit other indices as well")
    return start, kept


def _part(
    video: _Video, packets: Iterator[av.Packet], start: int, first: int, last: int, limit: int
) -> tuple[int, list[av.Packet]]:
    """The index of the last key frame at or before frame `first`, and the packets, in stored order,
    from it to those that frame `last` needs. `packets` begin with the key frame of index `start`.
    """
    kept: list[av.Packet] = []
    stamps: list[int] = []  # of the frames in `kept`
    size = 0
    for packet in packets:
        if packet.size == 0:
            continue
        if packet.pts is None or packet.is_corrupt or packet.is_discard:
            raise _CannotCutError("a packet without a time stamp, or a corrupt or discarded one")
        if packet.is_keyframe and start + len(stamps) <= first:
            if max(stamps, default=packet.pts) > packet.pts:
                raise _CannotCutError("a frame stored before a key frame and shown after it")
            start, kept, stamps, size = start + len(stamps), [], [], 0
        kept.append(packet)
        size += packet.size
        if size > limit:
            raise _CannotCutError("too large")
        if video.gives_frame(packet):
            stamps.append(packet.pts)
        if len(stamps) > last - start + video.reordered:
            break
    if start > first or len(stamps) <= last - start:
        raise _CannotCutError("not all of the frames")
    _check_alone(video, kept)
    needed = set(sorted(stamps)[: last - start + 1])
    while kept[-1].pts not in needed:
        kept.pop()
    return start, kept


def _check_alone(video: _Video, packets: list[av.Packet]) -> None:
    """Raise _CannotCutError unless these packets decode by themselves, to frames without gaps."""
    stamps = [packet.pts for packet in packets if video.gives_frame(packet)]
    if not packets or not packets[0].is_keyframe or None in stamps:
        raise _CannotCutError("no key frame, or no time stamp")
    if len(set(stamps)) < len(stamps) or min(stamps) < packets[0].pts:
        raise _CannotCutError("duplicate time stamps, or frames shown before their key frame")
    if video.codec == "h264" and not _is_idr(packets[0], video.stream.codec_context.extradata):
        raise _CannotCutError("a key frame that refers to earlier frames")


def _is_idr(packet: av.Packet, extradata: bytes | None) -> bool:
    """Whether an H.264 packet is an IDR picture (in annex B format, or as MP4 stores it)."""
    data = bytes(packet)
    if not extradata or extradata[0] != 1:
        return any(unit[0] & 31 == _IDR for unit in data.split(b"\0\0\1")[1:] if unit)
    width, offset = (extradata[4] & 3) + 1, 0
    while offset + width < len(data):
        if data[offset + width] & 31 == _IDR:
            return True
        offset += width + int.from_bytes(data[offset : offset + width])
    return False


def _remuxed(video: _Video, packets: list[av.Packet], container: str) -> np.ndarray:
    """The packets as a file, uint8 [bytes], with time stamps from 0 on."""
    file, origin = io.BytesIO(), packets[0].pts
    with av.open(file, "w", format=container) as output:
        try:
            copy = output.add_stream_from_template(video.stream, opaque=True)  # needs no encoder
        except ValueError as error:
            raise _CannotCutError(str(error)) from None
        copy.time_base = video.stream.time_base
        for packet in packets:
            packet.pts -= origin
            if packet.dts is not None:
                packet.dts -= origin
            packet.stream = copy
            output.mux(packet)
    return np.frombuffer(file.getbuffer(), np.uint8)
