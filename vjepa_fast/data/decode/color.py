"""Colors: which matrix and range a frame has, and its conversion to RGB.

Transfer functions are not converted: RGB has the video's own (BT.709's, PQ, HLG).
"""

from __future__ import annotations

from contextlib import suppress

import av
import numpy as np
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter

from vjepa_fast.data.ffmpeg import BadVideo, open_video, video_stream

# FFmpeg's numbers (AVColorSpace), which are those of ITU-T H.273, table 4.
RGB = 0
BT709 = 1
UNTAGGED = 2
BT601 = 5  # 6 is the same matrix
# Number -> (K_R, K_B): luma is K_R R + (1 - K_R - K_B) G + K_B B. FFmpeg takes untagged video for
# BT.601.
LUMA = {
    BT709: (0.2126, 0.0722),
    UNTAGGED: (0.299, 0.114),
    4: (0.30, 0.11),  # FCC
    BT601: (0.299, 0.114),
    6: (0.299, 0.114),
    7: (0.212, 0.087),  # SMPTE 240M
    9: (0.2627, 0.0593),  # BT.2020
}
# No matrix turns these into RGB, or it depends on more than their number; FFmpeg refuses them, too.
_NOT_CONVERTED = {
    8: "YCgCo",
    10: "BT.2020 with constant luminance",
    11: "SMPTE 2085",
    12: "a matrix derived from the primaries",
    13: "a matrix derived from the primaries, with constant luminance",
    14: "ICtCp",
    15: "IPT-C2",
    16: "YCgCo-Re",
    17: "YCgCo-Ro",
}
# Codecs whose range DALI's GPU decoder follows: it asks NVIDIA's parser of the stream, which does
# not know what the container says.
RANGE_FOLLOWED = ("h264", "hevc")
# With these, RGB is bit for bit that of DALI on the CPU where the matrix is BT.601. (FFmpeg's
# default rounds down: 1.5 gray levels too dark.)
TO_RGB = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
_GRAY_LEVELS = np.clip(np.round((np.arange(256) - 16) * 255 / 219), 0, 255).astype(np.uint8)


def matrix_of(frame: av.VideoFrame, container: int | None = None) -> int:
    """The matrix of a frame: a key of `LUMA`, or `RGB` where none applies (RGB, gray).

    Args:
        frame: a decoded frame. What it says comes first.
        container: what the container says; None if unknown.

    Raises:
        BadVideo: it has a matrix that is not converted.
    """
    if frame.format.is_rgb or frame.format.has_palette or _is_gray(frame):
        return RGB
    for matrix in (frame.colorspace, container):
        if matrix in _NOT_CONVERTED:
            raise BadVideo(f"colors that are not converted to RGB ({_NOT_CONVERTED[matrix]})")
        if matrix in LUMA and matrix != UNTAGGED:
            return matrix
    return UNTAGGED


def is_full_range(frame: av.VideoFrame) -> bool:
    """Whether the luma of black is 0 and that of white the largest, not 16 and 235 of 255."""
    if frame.color_range in (ColorRange.MPEG, ColorRange.JPEG) and not frame.format.is_rgb:
        return frame.color_range == ColorRange.JPEG
    return matrix_of(frame) == RGB or frame.format.name.startswith("yuvj")


def manifest_range(frame: av.VideoFrame, codec: str, url: str, index: int) -> bool | None:
    """`is_full_range` for the manifest: None where only the container says so, and not the stream.

    Args:
        frame: a decoded frame.
        codec: FFmpeg's name.
        url: the file that the frame is from, as FFmpeg opens it.
        index: its stream.
    """
    full = is_full_range(frame)
    if not full or codec not in RANGE_FOLLOWED:
        return full
    with open_video(url) as container:
        stream = video_stream(container, index)
        decoder = av.CodecContext.create(stream.codec_context.codec.name, "r")
        decoder.extradata = stream.codec_context.extradata
        for packet in container.demux(stream):
            with suppress(av.error.FFmpegError):  # of a damaged packet
                for alone in decoder.decode(packet):
                    return True if is_full_range(alone) else None
    return None


class RgbConverter:
    """Converts frames to RGB as the frames, or else the manifest, say."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()

    def __call__(self, frame: av.VideoFrame, matrix: int | None) -> np.ndarray:
        """Convert one frame of any pixel format: uint8 [height, width, 3].

        Args:
            frame: a decoded frame.
            matrix: the manifest's, for a frame that does not say.

        Raises:
            BadVideo: it has a matrix that is not converted.
        """
        found = matrix_of(frame, matrix)
        rgb = self._reformatter.reformat(
            frame,
            format="rgb24",
            src_colorspace=source_colorspace(found),
            interpolation=TO_RGB,
            threads=1,
        ).to_ndarray()
        if _is_gray(frame) and not is_full_range(frame):
            return _GRAY_LEVELS[rgb]  # FFmpeg takes all gray video for full range
        return rgb


def source_colorspace(matrix: int) -> int | None:
    """`matrix_of` as PyAV's `src_colorspace`; None where FFmpeg needs no matrix."""
    if matrix == RGB:
        return None
    return BT601 if matrix in (UNTAGGED, 6) else matrix


def from_bt601(matrix: int) -> np.ndarray:
    """What corrects RGB that was computed with BT.601's matrix instead of `matrix`, a key of
    `LUMA`: float64 [3, 3], to be multiplied with (R, G, B). It holds for either range.
    """
    as_bt601, right = (_to_rgb(*LUMA[number]) for number in (BT601, matrix))
    return right @ np.linalg.inv(as_bt601)


def _to_rgb(red: float, blue: float) -> np.ndarray:
    """The matrix from (Y, C_B, C_R), luma in 0 .. 1 and chroma in -0.5 .. 0.5, to (R, G, B)."""
    luma = np.array([red, 1 - red - blue, blue])
    difference_blue = (np.array([0.0, 0.0, 1.0]) - luma) / (2 * (1 - blue))
    difference_red = (np.array([1.0, 0.0, 0.0]) - luma) / (2 * (1 - red))
    return np.linalg.inv(np.stack([luma, difference_blue, difference_red]))


def _is_gray(frame: av.VideoFrame) -> bool:
    return len(frame.format.components) < 3 and not frame.format.has_palette
