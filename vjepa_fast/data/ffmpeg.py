"""Opening a video with FFmpeg (PyAV), choosing its stream, and reading its frames' time stamps."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np
from av.stream import Disposition


class BadVideo(Exception):
    """A video that cannot be used; the message is the reason, in words for the user."""


def open_video(url: str, probe: bool = True) -> av.container.InputContainer:
    """Open a file, or what `manifest.location.entry_url` returns, for reading.

    Args:
        probe: let FFmpeg decode what it needs to tell all properties of the streams. Without,
            those may be wrong that only frames tell, such as H.264's format of pixels and how many
            frames it stores in another order than it shows them; decoding finds them out.
    """
    # pattern_type: a "%" in the name of an image is no pattern. Titles need not be UTF-8.
    options = {"pattern_type": "none"}
    if not probe:  # FFmpeg's probe reads one packet and decodes none
        options |= {"probesize": "32", "skip_frame": "all"}
    return av.open(url, metadata_errors="replace", options=options)


def video_stream(
    container: av.container.InputContainer, index: int | None = None
) -> av.video.stream.VideoStream | None:
    """A video stream, set to decode in the calling thread.

    Args:
        container: the opened file.
        index: which of the file's streams, counted from 0; None takes the one that FFmpeg takes
            for the best, or the first, of those that are no cover pictures.

    Returns:
        The stream; None where there is none.

    Raises:
        BadVideo: FFmpeg has no decoder for it.
    """
    streams = [
        stream
        for stream in container.streams.video
        if (index is None and not is_cover(stream)) or stream.index == index
    ]
    if not streams:
        return None
    best = container.streams.best("video") if len(streams) > 1 else None
    stream = best if best in streams else streams[0]
    if stream.codec_context is None:
        raise BadVideo("no decoder for its codec")
    # Parallel over videos: threads within a video only cost start-up.
    stream.codec_context.thread_count = 1
    return stream


def is_cover(stream: av.video.stream.VideoStream) -> bool:
    """Whether a stream is a cover picture, as music files and films have."""
    return bool(stream.disposition & Disposition.attached_pic)


def count_frame(packet: av.Packet, codec: str) -> bool:
    """Whether decoding a packet of the video stream yields a frame.

    The empty packet at the end yields none, nor do packets that an edit list removes, nor VP8's
    alternative reference frames, which are never shown (RFC 6386, section 9.1).
    """
    if packet.size == 0 or packet.is_discard:
        return False
    return codec != "vp8" or bool(bytes(packet)[0] >> 4 & 1)


def frame_times(url: str, frames: int, index: int | None = None) -> np.ndarray | None:
    """When each of the `frames` frames of stream `index` is shown; demuxes the whole file, and
    decodes it where the packets are not the frames.

    Returns:
        Seconds from the first frame on, float64 [frames], ascending; None where not every frame
        has a time stamp.

    Raises:
        BadVideo: there is no video stream.
        av.error.FFmpegError, EOFError, OSError: the file cannot be read.
    """
    with open_video(url) as container:
        stream = video_stream(container, index)
        if stream is None:
            raise BadVideo("no video stream")
        codec = stream.codec_context.codec.canonical_name
        stamps = [
            packet.pts
            for packet in container.demux(stream)
            if packet.pts is not None and count_frame(packet, codec)
        ]
        times = seconds_from_first(stamps, stream.time_base, frames)
    if times is not None:
        return times
    with open_video(url) as container:
        stream = video_stream(container, index)
        shown = [frame.pts for frame in container.decode(stream)]
        return times_of_frames(shown, stream.time_base) if len(shown) == frames else None


def times_of_frames(stamps: Sequence[int | None], time_base: Fraction) -> np.ndarray | None:
    """Time stamps of decoded frames, in units of `time_base` (seconds), as seconds from the first
    on: float64 [frames]; None where a frame has none, or they do not ascend.
    """
    if not stamps or None in stamps:
        return None
    ticks = np.array(stamps, dtype=np.int64)
    return (ticks - ticks[0]) * float(time_base) if (np.diff(ticks) > 0).all() else None


def seconds_from_first(
    stamps: Sequence[int], time_base: Fraction, frames: int
) -> np.ndarray | None:
    """Time stamps in units of `time_base` (seconds), in any order, as seconds from the first on:
    float64 [frames], ascending; None where there is not one for each of the `frames` frames.
    """
    if not frames or len(stamps) != frames:
        return None
    ticks = np.sort(np.array(stamps, dtype=np.int64))
    return (ticks - ticks[0]) * float(time_base)
