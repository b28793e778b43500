"""Videos of color patches, drawn as YCbCr by the standards' formulas, not by FFmpeg's."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

# Two rows of four. BT.601's matrix, applied to the BT.709 and BT.2020 of the first row, stays
# within 0 .. 255; of the second row, it does not.
PATCHES = np.array(
    [
        [(190, 80, 60), (70, 180, 90), (60, 70, 160), (40, 40, 40)],
        [(200, 30, 30), (30, 220, 30), (30, 30, 200), (235, 235, 235)],
    ],
    dtype=float,
)
# Number in ITU-T H.273 -> shares of red and blue in luma.
LUMA = {1: (0.2126, 0.0722), 2: (0.299, 0.114), 5: (0.299, 0.114), 6: (0.299, 0.114)}
LUMA |= {4: (0.3, 0.11), 7: (0.212, 0.087), 9: (0.2627, 0.0593)}
LIMITED, FULL = 1, 2
BEST = {  # options for nearly lossless copies of flat patches
    "libx264": {"preset": "ultrafast", "crf": "2"},
    "libx265": {"preset": "ultrafast", "crf": "2", "x265-params": "log-level=none"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "crf": "2", "b": "0"},
    "libvpx": {"deadline": "realtime", "cpu-used": "8", "crf": "4", "b": "4M"},
    "libsvtav1": {"preset": "12", "crf": "4"},
    "mjpeg": {"strict": "unofficial", "q": "1"},
    "mpeg2video": {"q": "1"},
    "mpeg4": {"q": "1"},
}


def write_patches(
    path: Path,
    encoder: str,
    pixels: str,
    matrix: int = 5,
    full: bool = False,
    tagged: bool = True,
    size: tuple[int, int] = (128, 64),
    frames: int = 6,
    container_tag: int | None = None,
    drawn_as: int | None = None,
) -> Path:
    """Encode frames of `PATCHES` in a matrix (a key of `LUMA`) and range.

    Args:
        path: the container follows from its extension.
        encoder: FFmpeg's name.
        pixels: FFmpeg's name of the pixel format; gray shows the patches' luma.
        matrix: that of the conversion to YCbCr.
        full: whether luma is 0 .. 255, not 16 .. 235.
        tagged: whether the stream says so.
        size: width and height in pixels.
        frames: how many.
        container_tag: a matrix that the container names with the range, whatever the stream says.
        drawn_as: the matrix of the conversion, where the tag lies.
    """
    tags = (matrix, FULL if full else LIMITED) if tagged else (2, 0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(encoder, 25, options=BEST.get(encoder, {}))
        stream.width, stream.height = size
        stream.pix_fmt = pixels
        context = stream.codec_context
        context.colorspace, context.color_range = tags
        context.gop_size = 12
        if container_tag is not None:
            context.open()  # the encoder has read its tags
            context.colorspace = container_tag
            context.color_range = FULL if full else LIMITED
        for i in range(frames):
            frame = _drawn(pixels, size, matrix if drawn_as is None else drawn_as, full)
            frame.colorspace, frame.color_range = tags
            frame.pts, frame.time_base = i, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def errors(picture: np.ndarray, gray: bool = False) -> np.ndarray:
    """How far the mean of each patch is from what was drawn, float [2, 4, 3], in gray levels.

    Args:
        picture: uint8 [height, width, 3] of all patches, at any size.
        gray: the patches' luma (of BT.601) was drawn.
    """
    drawn = PATCHES
    if gray:
        red, blue = LUMA[5]
        drawn = (PATCHES @ [red, 1 - red - blue, blue])[..., None]
    height, width = picture.shape[0] // 2, picture.shape[1] // 4
    inner = [
        [
            picture[y + height // 4 : y + height - height // 4, x + width // 4 : x + width * 3 // 4]
            for x in range(0, 4 * width, width)
        ]
        for y in (0, height)
    ]
    means = np.array([[patch.reshape(-1, 3).mean(0) for patch in row] for row in inner])
    return np.abs(means - drawn)


def _drawn(pixels: str, size: tuple[int, int], matrix: int, full: bool) -> av.VideoFrame:
    frame = av.VideoFrame(*size, pixels)
    bits = frame.format.components[0].bits
    if matrix == 0:
        planes = [PATCHES[..., i] / 255 * (2**bits - 1) for i in (1, 2, 0)]
    else:
        planes = coded(matrix, full, bits)
    for plane, values in zip(frame.planes, planes, strict=False):
        kind = np.dtype("u1" if bits <= 8 else "<u2")
        rows = np.zeros((plane.height, plane.line_size // kind.itemsize), kind)
        block = np.ones((plane.height // 2, plane.width // 4))
        rows[:, : plane.width] = np.kron(np.round(values), block)
        plane.update(rows.tobytes())
    return frame


def coded(matrix: int, full: bool, bits: int) -> list[np.ndarray]:
    """Luma, blue and red difference and an opaque alpha channel of `PATCHES`: each [2, 4]."""
    red, blue = LUMA[matrix]
    r, g, b = np.moveaxis(PATCHES / 255, -1, 0)
    luma = red * r + (1 - red - blue) * g + blue * b
    chroma = (b - luma) / (2 * (1 - blue)), (r - luma) / (2 * (1 - red))
    largest, unit = 2**bits - 1, 2 ** (bits - 8)
    opaque = np.full_like(luma, largest)
    if full:
        return [largest * luma, *(largest * c + 128 * unit for c in chroma), opaque]
    return [(16 + 219 * luma) * unit, *((128 + 224 * c) * unit for c in chroma), opaque]
