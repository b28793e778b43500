"""Crops of decoded frames, resized to squares in RGB: one pass of FFmpeg's scaler over a crop's
pixels.

The planes are resized before their colors are converted: luma and chroma each by a triangular
filter, as wide as the step between pixels of the square. The scaler takes what is chroma's place
between luma from the frame, but not for a crop that begins between two chroma samples, so the place
is measured and told to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import av
import numpy as np
import torch
from av.filter import Graph
from av.video.reformatter import VideoReformatter

from vjepa_fast.data.decode.color import (
    TO_RGB,
    RgbConverter,
    is_full_range,
    matrix_of,
    source_colorspace,
)

# FFmpeg's names of the matrices that `source_colorspace` returns.
_MATRICES = {1: "bt709", 4: "fcc", 5: "bt601", 7: "smpte240m", 9: "bt2020"}
_FLAGS = "bilinear+accurate_rnd+full_chroma_int"  # `TO_RGB`
# Of smaller crops the scaler's filters, and of larger steps their rounding, may be off.
_SMALLEST, _LARGEST_STEP = 16, 16
_GBR = (1, 2, 0)  # place in RGB of the planes of "gbrp"
_PROBE, _RISE = 16, 16  # see `_chroma_place`: pixels, levels from a sample to the next
_Filtered = Callable[[av.VideoFrame], av.VideoFrame]


@dataclass(frozen=True)
class PixelBox:
    """A crop in pixels of the stored picture."""

    top: int
    left: int
    height: int
    width: int


class Cropper:
    """Makes one crop of a video's frames, of any pixel format.

    Args:
        box: the crop.
        size: S, pixels of a side of the square.
        matrix: the manifest's, for frames that do not say.
    """

    def __init__(self, box: PixelBox, size: int, matrix: int | None) -> None:
        self._box, self._size, self._matrix = box, size, matrix
        self._to_rgb = RgbConverter()
        self._resize: _Filtered | None = None  # None: by way of RGB
        self._kind: tuple | None = None  # of frames, that `_resize` was made for

    def __call__(self, frame: av.VideoFrame, out: np.ndarray) -> None:
        """Write the crop of a frame to `out`, uint8 [S, S, 3], RGB.

        Raises:
            BadVideo: the frame has a matrix that is not converted.
        """
        kind = (
            frame.width,
            frame.height,
            frame.format.name,
            frame.colorspace,
            frame.color_range,
        )
        if kind != self._kind:
            scaled = self._is_scaled_in_planes(frame)
            self._resize = self._filters(frame) if scaled else None
            self._kind = kind
        if self._resize is None:
            out[:] = self._by_way_of_rgb(frame)
            return
        square = self._resize(frame)
        for plane, channel in zip(square.planes, _GBR, strict=True):
            rows = np.frombuffer(plane, np.uint8).reshape(self._size, plane.line_size)
            out[..., channel] = rows[:, : self._size]

    def _is_scaled_in_planes(self, frame: av.VideoFrame) -> bool:
        box, pixels = self._box, frame.format
        planar = pixels.name.startswith("yuv") and len(pixels.components) >= 3
        return (
            planar
            and (box.height, box.width) != (self._size, self._size)  # only cut: as it was drawn
            and pixels.is_planar
            and not pixels.is_big_endian
            and pixels.chroma_width(256) >= 128
            and pixels.chroma_height(256) >= 128
            # FFmpeg crops samples of two bytes in the middle of one.
            and not (box.left % 2 and pixels.components[0].bits > 8)
            and min(box.height, box.width) >= _SMALLEST
            and max(box.height, box.width) <= _LARGEST_STEP * self._size
        )

    def _filters(self, frame: av.VideoFrame) -> _Filtered:
        box, size = self._box, self._size
        matrix = matrix_of(frame, self._matrix)
        range_ = "pc" if is_full_range(frame) else "tv"
        scale = f"{size}:{size}:flags={_FLAGS}:in_range={range_}"
        scale += f":in_color_matrix={_MATRICES[source_colorspace(matrix)]}"
        subsampled = _subsampled(frame)
        if any(subsampled):
            across, down = _chroma_place(frame)
            if subsampled[0]:
                scale += f":in_h_chr_pos={_in_crop(across, box.left, box.width)}"
            if subsampled[1]:
                scale += f":in_v_chr_pos={_in_crop(down, box.top, box.height)}"
        crop = f"{box.width}:{box.height}:{box.left}:{box.top}:exact=1"
        filters = [("crop", crop), ("scale", scale), ("format", "gbrp")]
        return _linked(frame, filters, f":range={range_}")

    def _by_way_of_rgb(self, frame: av.VideoFrame) -> np.ndarray:
        box = self._box
        rows = slice(box.top, box.top + box.height)
        columns = slice(box.left, box.left + box.width)
        picture = torch.from_numpy(self._to_rgb(frame, self._matrix)[rows, columns])
        resized = torch.nn.functional.interpolate(
            picture.permute(2, 0, 1)[None],
            (self._size, self._size),
            mode="bilinear",
            antialias=True,
        )
        return resized[0].permute(1, 2, 0).numpy()


def _subsampled(frame: av.VideoFrame) -> tuple[bool, bool]:
    """Whether chroma has half the samples of luma: in a row, in a column."""
    pixels = frame.format
    return pixels.chroma_width(256) == 128, pixels.chroma_height(256) == 128


def _in_crop(place: float, start: int, length: int) -> int:
    """A `_chroma_place` for the scaler, in 1/256 pixels, of a crop that starts at a pixel.

    A crop that starts between two chroma samples has the one before it. In one of odd length, the
    last sample is only half in the crop, but the scaler spreads the samples over it evenly. So they
    are shifted by half a pixel, to be right in the middle, and half a pixel off at the edges.
    """
    return round(256 * (place - start % 2 + 0.5 * (length % 2)))


def _chroma_place(frame: av.VideoFrame) -> tuple[float, float]:
    """Where the first chroma sample is, in luma pixels right of and below the first luma sample.

    The frame's property is not in PyAV, but FFmpeg's scaler follows it. So the scaler is asked for
    a pixel's chroma in a picture of the same properties whose chroma rises with the sample: C_B to
    the right, C_R downwards. Meaningless for an axis on which chroma is not subsampled.
    """
    small = _linked(frame, [("crop", f"{_PROBE}:{_PROBE}:0:0")])(frame)
    small.make_writable()
    bits = frame.format.components[1].bits
    dtype = np.dtype("<u2" if bits > 8 else "u1")
    for plane, axis in zip(small.planes[1:3], (1, 0), strict=True):
        samples = np.zeros((plane.height, plane.line_size // dtype.itemsize), dtype)
        rising = _RISE * np.minimum(np.arange(samples.shape[axis]), _PROBE // 2) << (bits - 8)
        samples[:] = np.expand_dims(rising, 1 - axis)
        plane.update(samples)
    full = "yuvj444p" if frame.format.name.startswith("yuvj") else "yuv444p"
    upsampled = VideoReformatter().reformat(small, format=full, interpolation=TO_RGB, threads=1)
    at = _PROBE // 2
    found = []
    for plane in upsampled.planes[1:3]:
        chroma = np.frombuffer(plane, np.uint8).reshape(_PROBE, plane.line_size)[at, at]
        place = at - 2 * float(chroma) / _RISE
        found.append(round(2 * place) / 2)  # halves, whatever this processor's scaler rounds
    return found[0], found[1]


def _linked(frame: av.VideoFrame, filters: list[tuple[str, str]], range_: str = "") -> _Filtered:
    """The filters, of which each is a name and its arguments, for frames like this one."""
    graph = Graph()
    graph.threads = 1
    size = f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}"
    source = graph.add("buffer", f"{size}:time_base=1/1{range_}")
    nodes = [graph.add(*name_and_arguments) for name_and_arguments in filters]
    graph.link_nodes(source, *nodes, graph.add("buffersink")).configure()

    def filtered(frame: av.VideoFrame) -> av.VideoFrame:
        graph.vpush(frame)
        return graph.vpull()

    return filtered
