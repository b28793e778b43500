"""Encoding one small upright copy of a video with frequent key frames and its time stamps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter

from vjepa_fast.data.decode.color import (
    BT601,
    RGB,
    UNTAGGED,
    is_full_range,
    matrix_of,
    source_colorspace,
)
from vjepa_fast.data.ffmpeg import BadVideo, frame_times, open_video, video_stream
from vjepa_fast.data.prepare.inspect import checked_rotation

STAMP = "vjepa_fast transcode"  # the beginning of every copy's comment
CODECS = {  # name -> (encoder, suffix, options, muxer's options)
    # Three of four frames are B-frames that no other frame refers to: a clip of every fourth frame
    # decodes without most of them. fastdecode leaves out what costs a decoder most, CABAC and
    # deblocking. docs/data.md has the table of settings (bench/video/transcode.py).
    "h264": (
        "libx264",
        ".mp4",
        {
            "preset": "veryfast",
            "tune": "fastdecode",
            "crf": "18.5",
            "bf": "3",
            "x264-params": "b-adapt=0:b-pyramid=none",
            "sc_threshold": "0",
        },
        {"movflags": "faststart"},
    ),
    "vp9": (
        "libvpx-vp9",
        ".webm",
        {"deadline": "good", "cpu-used": "5", "crf": "30", "b": "0"},
        {},
    ),
}
# MP4 has 32 bits for the time from a frame to the next, and for that from a frame's decoding to its
# display, which with three B-frames may be that of four frames; half of the range is a margin.
# Where a pause is longer, copies count milliseconds and have no B-frames: up to pauses of 24 days.
_LONGEST_PAUSE = 2**31 // 8  # in MP4's units of time
_MP4_UNITS = 20_000  # a second: FFmpeg doubles those of the time base until they are over 10,000
# Without the others, another matrix costs three gray levels.
_TO_COPY = (
    Interpolation.AREA
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
)
_TURNS = {  # degrees clockwise -> FFmpeg's filters
    90: [("transpose", "clock")],
    180: [("hflip", None), ("vflip", None)],
    270: [("transpose", "cclock")],
}


@dataclass(frozen=True)
class Settings:
    """How a copy is made.

    Attributes:
        codec: a key of `CODECS`.
        short_side: pixels that the shorter side has at most.
        gop: frames from one key frame to the next.
    """

    codec: str
    short_side: int
    gop: int

    @property
    def stamp(self) -> str:
        """The settings as a copy's comment has them: another text for other options."""
        codec = {"h264": "h264 with 3 B-frames of 4"}.get(self.codec, self.codec)
        size = f"{codec} {self.short_side} px, key frame every {self.gop}"
        return f"{STAMP} {size}, upright, BT.601"

    @property
    def suffix(self) -> str:
        """The extension of a copy."""
        return CODECS[self.codec][1]


def encode_copy(
    url: str, index: int | None, frames: int, target: Path, settings: Settings, stamp: str
) -> None:
    """Write a copy of a video, without its audio and never enlarged.

    Its colors are BT.601, limited range: the only ones that every decoder shows right.

    Args:
        url: what FFmpeg opens.
        index: of the video stream, for `video_stream`.
        frames: number of its frames.
        target: the copy.
        settings: its codec, size and key frames.
        stamp: its comment.

    Raises:
        BadVideo: a copy would hide that the video is damaged, or it has no usable stream.
        av.error.FFmpegError: reading or writing fails.
    """
    encoder, suffix, options, muxing = CODECS[settings.codec]
    reformatter = VideoReformatter()
    times = frame_times(url, frames, index)  # ascending, as the frames' own need not be
    with open_video(url) as source, av.open(str(target), "w", suffix[1:], options=muxing) as copy:
        video = video_stream(source, index)
        if video is None:
            raise BadVideo("no video stream")
        container_matrix = video.codec_context.colorspace  # decoding overwrites it
        copy.metadata["comment"] = stamp
        rate = video.average_rate or Fraction(25)
        stream = copy.add_stream(encoder, rate, options=options)
        stream.pix_fmt = "yuv420p"
        time_base = Fraction(1, 1000)
        if suffix == ".mp4":
            time_base = 1 / rate if times is None else video.time_base
            pause = 0.0 if times is None else np.diff(times).max(initial=0)
            if pause * max(float(1 / time_base), _MP4_UNITS) > _LONGEST_PAUSE:
                time_base = Fraction(1, 1000)
                copy.options["video_track_timescale"] = "1000"
                stream.options = options | {"bf": "0"}
        stream.codec_context.time_base = time_base
        stream.codec_context.colorspace, stream.codec_context.color_range = BT601, ColorRange.MPEG
        stream.codec_context.gop_size = settings.gop
        stream.codec_context.thread_count = 1  # parallel over videos
        size, pts = None, -1
        for i, frame in enumerate(source.decode(video)):
            if size is None:
                size = frame.width, frame.height
                width, height = _size(*size, settings.short_side)
                rotation = checked_rotation(frame)
                turned = rotation in (90, 270)
                stream.width, stream.height = (height, width) if turned else (width, height)
                upright = _turner(rotation, width, height)
            _check_frame(i, frame, size)
            time = i / rate if times is None or i >= frames else Fraction(times[i])
            matrix = matrix_of(frame, container_matrix)
            # FFmpeg takes all gray video for full range: as a copy it shall stay as it is.
            stays = matrix == RGB and not is_full_range(frame)
            smaller = reformatter.reformat(
                frame,
                width,
                height,
                "yuv420p",
                src_colorspace=source_colorspace(matrix),
                dst_colorspace=BT601,
                dst_color_range=ColorRange.JPEG if stays else ColorRange.MPEG,
                interpolation=_TO_COPY,
            )
            smaller.colorspace, smaller.color_range = UNTAGGED, ColorRange.UNSPECIFIED
            smaller = upright(smaller)
            smaller.colorspace, smaller.color_range = BT601, ColorRange.MPEG
            smaller.pict_type = 0
            pts = max(round(time / time_base), pts + 1)  # two frames may have the same time stamp
            smaller.pts, smaller.time_base = pts, time_base
            copy.mux(stream.encode(smaller))
        if size is None:  # PyAV would write no file at all
            raise BadVideo("damaged (no frame can be decoded)")
        copy.mux(stream.encode(None))


def comment_of(path: Path) -> str | None:
    """The comment of a file that `encode_copy` or `demo` wrote; None if there is none, or no file
    that FFmpeg can open.
    """
    if not path.is_file():
        return None
    try:
        with open_video(str(path)) as container:
            return {name.lower(): text for name, text in container.metadata.items()}.get("comment")
    except av.error.FFmpegError:
        return None


def _turner(rotation: int, width: int, height: int) -> Callable[[av.VideoFrame], av.VideoFrame]:
    """A function that rotates yuv420p frames of that size clockwise by `rotation` degrees."""
    if not rotation:
        return lambda frame: frame
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=width, height=height, format="yuv420p", time_base=Fraction(1, 1000)
    )
    turns = [graph.add(name, argument) for name, argument in _TURNS[rotation]]
    graph.link_nodes(source, *turns, graph.add("buffersink")).configure()

    def turn(frame: av.VideoFrame) -> av.VideoFrame:
        graph.vpush(frame)
        return graph.vpull()

    return turn


def _check_frame(index: int, frame: av.VideoFrame, size: tuple[int, int]) -> None:
    """Raise BadVideo for a frame whose copy would look valid though the frame is not."""
    if frame.is_corrupt:
        raise BadVideo(f"damaged (frame {index} is corrupt)")
    if (frame.width, frame.height) != size:
        raise BadVideo(
            f"changes its size ({size[0]}x{size[1]}, from frame {index} on "
            f"{frame.width}x{frame.height})"
        )


def _size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Width and height of the copy: even, and no larger than the original's."""
    scale = min(1.0, short_side / min(width, height))
    return tuple(max(2, round(side * scale / 2) * 2) for side in (width, height))
