"""What demuxing a video from its start to its end finds, without decoding."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import av

from vjepa_fast.data.ffmpeg import count_frame
from vjepa_fast.data.frames.fields import may_have_fields
from vjepa_fast.data.frames.headers import NEW_HEADERS, Headers

# Of these it is known which packets give a frame, and that key frames need nothing before them.
# Others keep palettes or repeat pictures.
_KNOWN = {
    "av1",
    "h264",
    "hevc",
    "mjpeg",
    "mpeg1video",
    "mpeg2video",
    "mpeg4",
    "prores",
    "vp8",
    "vp9",
}
_MAY_BE_EMPTY = 19  # bytes of an MPEG-4 picture at most that may not be coded, which gives no frame


@dataclass
class Packets:
    """The packets of a video stream; times are in units of its time base.

    Attributes:
        codec: FFmpeg's name of the codec.
        fps: the rate that the container gives, in frames per second; 0 where it gives none.
        matrix: from YCbCr to RGB as the container gives it, see `ManifestEntry`.
        total: packets that are not empty.
        frames: packets that should decode to a frame.
        corrupt: packets that FFmpeg marks as corrupt.
        gop: the most frames from one key frame to the next.
        stamps: presentation time stamps of the frames that have one, in stored order.
        keys: of each key frame, how many frames are stored before it.
        end: when the last packet of any stream ends, in seconds.
        last_dts: decoding time stamp of the last packet.
        step: the largest difference between two successive decoding time stamps.
        doubts: why the time stamps may not tell the frames' order, without repetitions.
        of_stream: packets that are not empty of each stream, by its index in the file.
    """

    codec: str
    fps: float
    matrix: int
    total: int = 0
    frames: int = 0
    corrupt: int = 0
    gop: int = 0
    stamps: list[int] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)
    end: float = 0.0
    last_dts: int = 0
    step: int = 1
    doubts: set[str] = field(default_factory=set)
    of_stream: dict[int, int] = field(default_factory=dict)


def read_packets(
    container: av.container.InputContainer, stream: av.video.stream.VideoStream
) -> Packets:
    """Demux a file that was just opened, to its end.

    Raises:
        av.error.FFmpegError, EOFError: the file cannot be read.
    """
    codec = stream.codec_context.codec.canonical_name
    fps = float(stream.average_rate or stream.guessed_rate or 0)
    found = Packets(codec, fps, stream.codec_context.colorspace)
    if codec not in _KNOWN:
        found.doubts.add("a rare codec")
    # FFmpeg joins the fields of a frame in MPEG's own containers only.
    joined = container.format.name in ("mpegts", "mpeg")
    if codec == "h264" and not joined and may_have_fields(stream.codec_context.extradata or b""):
        found.doubts.add("pictures that may be fields")
    headers = Headers(stream)
    key_stamp: int | None = None
    dts: int | None = None
    ends: dict[int, float] = {}  # of each stream, in seconds
    for packet in container.demux():
        index = packet.stream.index
        if packet.size:  # MPEG's program streams stamp few packets
            start = ends.get(index, 0.0)
            if packet.pts is not None:
                start = float(packet.pts * packet.time_base)
            ends[index] = start + float((packet.duration or 0) * packet.time_base)
            found.end = max(found.end, ends[index])
            found.of_stream[index] = found.of_stream.get(index, 0) + 1
        if packet.stream is not stream:
            continue
        found.total += packet.size > 0
        if packet.dts is not None and packet.size:
            found.step = max(found.step, packet.dts - found.last_dts)
            found.last_dts = packet.dts
            if dts is not None and packet.dts <= dts:
                found.doubts.add("decoding time stamps that do not ascend")
            dts = packet.dts
        found.corrupt += packet.is_corrupt
        if codec == "mpeg4" and 0 < packet.size <= _MAY_BE_EMPTY:
            found.doubts.add("pictures that may not be coded")
        if packet.is_discard:
            found.doubts.add("an edit list")
        if headers.change_at(packet) or packet.has_sidedata(NEW_HEADERS):
            found.doubts.add("new headers within the stream")
        if not count_frame(packet, codec):
            continue
        if packet.pts is None:
            found.doubts.add("frames without a time stamp")
        else:
            found.stamps.append(packet.pts)
        if packet.is_keyframe:
            found.keys.append(found.frames)
            key_stamp = packet.pts
        elif key_stamp is not None and packet.pts is not None and packet.pts < key_stamp:
            found.doubts.add("frames stored after a key frame and shown before it")
        found.frames += 1
    if len(set(found.stamps)) < len(found.stamps):
        found.doubts.add("time stamps that occur twice")
    starts = [*found.keys, found.frames]
    found.gop = max((b - a for a, b in pairwise([0, *starts])), default=0)
    return found
