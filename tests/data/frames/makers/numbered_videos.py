"""Small videos whose every picture shows its number, of any codec, container and time stamps."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

os.environ["SVT_LOG"] = "1"  # of SVT-AV1: errors only

WIDTH, HEIGHT = 128, 64  # pixels
FRAMES = 120
GOP = 15
RATE = 25  # frames per second
_BITS = 8

# FFmpeg's muxer of each kind of file, by extension, where it is not the extension's own.
MUXERS = {"mkv": "matroska", "ts": "mpegts", "wmv": "asf", "mpg": "mpeg"}


@dataclass(frozen=True)
class Encoding:
    """How a codec is asked for one structure of its stream.

    Attributes:
        encoder: FFmpeg's name of the encoder.
        options: its options; "GOP" in a value stands for the frames of a group of pictures.
        pixels: the pixel format.
    """

    encoder: str
    options: dict[str, str] = field(default_factory=dict)
    pixels: str = "yuv420p"


def _x264(bframes: int, more: str = "") -> Encoding:
    options = f"bframes={bframes}:b-adapt=0:scenecut=0:keyint=GOP:min-keyint=GOP{more}"
    return Encoding("libx264", {"preset": "veryfast", "x264-params": options})


def _x265(bframes: int, open_gop: int) -> Encoding:
    options = (
        f"log-level=none:bframes={bframes}:b-adapt=0:scenecut=0:keyint=GOP:min-keyint=GOP"
        f":rc-lookahead=20:open-gop={open_gop}:pools=1:frame-threads=1:no-wpp=1"
    )
    return Encoding("libx265", {"preset": "ultrafast", "x265-params": options})


def _mpeg(encoder: str, bframes: int, closed: bool) -> Encoding:
    options = {"bf": str(bframes), "g": "GOP", "b": "2M", "sc_threshold": "1000000000"}
    return Encoding(encoder, options | ({"flags": "+cgop"} if closed else {}))


_VP9 = {"deadline": "realtime", "cpu-used": "8", "g": "GOP", "b": "500k"}
_SVT = {"preset": "12", "g": "GOP", "crf": "30"}

# codec -> structure -> how to encode it. In "bframes" and "open" frames are stored in another order
# than they are shown; in "open" some are stored after a key frame, refer to frames before it and
# are shown before it ("deep": up to 16); in "hidden" some pictures are never shown.
ENCODINGS: dict[str, dict[str, Encoding]] = {
    "h264": {
        "plain": _x264(0),
        "bframes": _x264(3),
        "open": _x264(3, ":open-gop=1"),
        "deep": _x264(16, ":open-gop=1:b-pyramid=normal:ref=16"),
        "refresh": _x264(0, ":intra-refresh=1"),  # recovery points instead of key frames
    },
    "hevc": {
        "plain": _x265(0, 0),
        "bframes": _x265(3, 0),
        "open": _x265(3, 1),
        "deep": _x265(16, 1),
    },
    "mpeg4": {
        "plain": _mpeg("mpeg4", 0, True),
        "bframes": _mpeg("mpeg4", 2, True),
        "open": _mpeg("mpeg4", 2, False),
        "one_b": _mpeg("mpeg4", 1, False),
    },
    "mpeg2": {
        "plain": _mpeg("mpeg2video", 0, True),
        "bframes": _mpeg("mpeg2video", 2, True),
        "open": _mpeg("mpeg2video", 2, False),
    },
    "vp8": {"plain": Encoding("libvpx", _VP9)},
    "vp9": {"plain": Encoding("libvpx-vp9", _VP9)},
    "av1": {
        "plain": Encoding("libsvtav1", _SVT | {"svtav1-params": "pred-struct=1:lp=1"}),
        "hidden": Encoding("libsvtav1", _SVT | {"svtav1-params": "lp=1"}),
        "open": Encoding("libsvtav1", _SVT | {"svtav1-params": "irefresh-type=1:lp=1"}),
    },
    "mjpeg": {"plain": Encoding("mjpeg", {"q": "3"}, "yuvj420p")},
    "prores": {"plain": Encoding("prores_ks", {}, "yuv422p10le")},
}


@dataclass(frozen=True)
class Case:
    """One video file of the matrix or one special situation.

    Attributes:
        name: what it is called in tables and tests; also the file's name.
        suffix: the file's extension, without the dot.
        make: writes the file at a path.
        refused: regular expression of the reason for which `index` has to refuse the file; empty
            where it has to be accepted.
    """

    name: str
    suffix: str
    make: Callable[[Path], object]
    refused: str = ""


def picture(number: int) -> np.ndarray:
    """Gray uint8 [HEIGHT, WIDTH]: the number's bits as black and white blocks in the upper half,
    their opposites in the lower one, so that a picture that is pieced together reads as -1."""
    bits = number >> (np.arange(WIDTH) * _BITS // WIDTH) & 1
    rows = np.where(np.arange(HEIGHT)[:, None] < HEIGHT // 2, bits, 1 - bits)
    return (16 + 219 * rows).astype(np.uint8)


def numbers(gray: np.ndarray) -> list[int]:
    """The numbers that gray pictures of any size [T, H, W] show; -1 for none."""
    blocks = gray.astype(np.float32)
    height, width = blocks.shape[1:]
    columns = ((np.arange(_BITS) + 0.5) * width / _BITS).astype(int)
    upper, lower = blocks[:, height // 4][:, columns], blocks[:, height * 3 // 4][:, columns]
    bits = upper > lower
    clear = (np.abs(upper - lower) > 60).all(1)
    return np.where(clear, (bits << np.arange(_BITS)).sum(1), -1).tolist()


def encode(
    codec: str,
    structure: str,
    path: Path,
    shown: Sequence[int] | int = FRAMES,
    pts: Sequence[int] | None = None,
    gop: int = GOP,
    alter: Callable[[list[av.Packet]], Iterable[av.Packet]] = list,
    muxer: str | None = None,
    options: dict[str, str] | None = None,
    rate: Fraction | int = RATE,
) -> Path:
    """Encode numbered pictures and write them to `path`.

    Args:
        codec, structure: keys of ENCODINGS.
        path: the file; its extension decides the container unless `muxer` names one.
        shown: the numbers of the pictures, or how many.
        pts: their time stamps in units of 1 / rate seconds; None: 0, 1, ….
        gop: frames from one key frame to the next.
        alter: takes the packets in decoding order, stamps in units of 1 / rate seconds, and returns
            those to be written.
        options: of the muxer.

    Raises:
        av.error.FFmpegError, ValueError: the container does not take this codec or these stamps.
    """
    encoding = ENCODINGS[codec][structure]
    muxer = muxer or MUXERS.get(path.suffix[1:], path.suffix[1:])
    shown = range(shown) if isinstance(shown, int) else shown
    settings = {key: value.replace("GOP", str(gop)) for key, value in encoding.options.items()}
    with av.open(str(path), "w", format=muxer, options=options or {}) as container:
        stream = container.add_stream(encoding.encoder, rate=rate, options=settings)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, encoding.pixels
        context = stream.codec_context
        context.gop_size, context.thread_count = gop, 1
        packets = []
        for at, number in enumerate(shown):
            gray = av.VideoFrame.from_ndarray(picture(number), format="gray")
            frame = gray.reformat(format=encoding.pixels)
            frame.pts, frame.time_base = (pts[at] if pts else at), 1 / Fraction(rate)
            packets += stream.encode(frame)
        packets += stream.encode(None)
        for packet in alter(packets):
            container.mux(packet)
    return path


def moved(by: int) -> Callable[[list[av.Packet]], Iterable[av.Packet]]:
    """Packets `by` frames later."""

    def alter(packets: list[av.Packet]) -> Iterable[av.Packet]:
        for packet in packets:
            packet.pts += by
            packet.dts += by
            yield packet

    return alter


def in_decoding_order(packets: list[av.Packet]) -> Iterable[av.Packet]:
    """Packets whose time stamps count them as they are stored, as programs write that know none."""
    for at, packet in enumerate(packets):
        packet.pts = packet.dts = at
        yield packet


def without_stamps(packets: list[av.Packet]) -> Iterable[av.Packet]:
    """Packets of which only the key frames have a time stamp."""
    for packet in packets:
        if not packet.is_keyframe:
            packet.pts = packet.dts = None
        yield packet
