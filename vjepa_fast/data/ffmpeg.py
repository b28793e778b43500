"""Opening a video with FFmpeg (PyAV), choosing its stream, and reading its frames' time stamps."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np
from av.stream import Disposition


class BadVideo(Exception):
    """A video that cannot be used; the message is the reason, in words for the user."""


def open_video(url: str) -> av.container.InputContainer:
    """Open a file, or what `manifest.location.entry_url` returns, for reading."""
    # pattern_type: a "%" in the name of an image is no pattern. Titles need not be UTF-8.
    return av.open(url, metadata_errors="replace", options={"pattern_type": "none"})


def video_stream(
    container: av.container.InputContainer,
) -> av.video.stream.VideoStream | None:
    """The first video stream that is not a cover picture, set to decode in the calling thread.

    Raises:
        BadVideo: FFmpeg has no decoder for it.
    """
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            if stream.codec_context is None:
                raise BadVideo("no decoder for its codec")
            # Parallel over videos: threads within a video only cost start-up.
            stream.codec_context.thread_count = 1
            return stream
    return None


def count_frame(packet: av.Packet, codec: str) -> bool:
    """Whether decoding a packet of the video stream yields a frame.

    The empty packet at the end yields none, nor do packets that an edit list removes, nor VP8's
    alternative reference frames, which are never shown (RFC 6386, section 9.1).
    """
    if packet.size == 0 or packet.is_discard:
        return False
    return codec != "vp8" or bool(bytes(packet)[0] >> 4 & 1)


def frame_times(url: str, frames: int) -> np.ndarray | None:
    """When each of the `frames` frames is shown; demuxes the whole file.

    Returns:
        Seconds from the first frame on, float64 [frames], ascending; None where not every frame
        has a time stamp.

    Raises:
        BadVideo: there is no video stream.
        av.error.FFmpegError, EOFError, OSError: the file cannot be read.
    """
    with open_video(url) as container:
        stream = video_stream(container)
        if stream is None:
            raise BadVideo("no video stream")
        codec = stream.codec_context.codec.canonical_name
        stamps = [
            packet.pts
            for packet in container.demux(stream)
            if packet.pts is not None and count_frame(packet, codec)
        ]
        return seconds_from_first(stamps, stream.time_base, frames)


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
