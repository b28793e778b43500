"""Small real video files for the tests of the data layer."""

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import av
import numpy as np

from vjepa_fast.data.manifest.files import write_manifest
from vjepa_fast.data.prepare.inspect import probe_video

CODECS = {  # name -> (encoder, file extension, pixel format)
    "vp8": ("libvpx", "webm", "yuv420p"),
    "vp9": ("libvpx-vp9", "webm", "yuv420p"),
    "mjpeg": ("mjpeg", "avi", "yuvj420p"),
    "mpeg4": ("mpeg4", "avi", "yuv420p"),
    "h264": ("libx264", "mp4", "yuv420p"),
    "hevc": ("libx265", "mp4", "yuv420p"),
    "av1": ("libsvtav1", "mp4", "yuv420p"),
}
FAST = {"libvpx": {"deadline": "realtime", "cpu-used": "8"}}
FAST |= {"libvpx-vp9": FAST["libvpx"], "libx264": {"preset": "ultrafast"}}
FAST |= {"libx265": {"preset": "ultrafast", "x265-params": "log-level=none:open-gop=0"}}
FAST |= {"libsvtav1": {"preset": "12"}}


def write_video(
    path: Path,
    pictures: Iterable[np.ndarray],
    codec: str,
    gop: int = 12,
    options: dict[str, str] | None = None,
    faststart: bool = False,
    rate: int = 25,
) -> Path:
    """Encode uint8 [H, W, 3] pictures, `rate` a second; the extension says the container.

    `faststart` puts the index of an MP4 in front, so that a truncated file still opens.
    """
    encoder, _, pixels = CODECS[codec]
    pictures = list(pictures)
    muxer = {"movflags": "faststart"} if faststart else {}
    with av.open(str(path), "w", options=muxer) as container:
        stream = container.add_stream(encoder, rate=rate, options=options or FAST.get(encoder, {}))
        stream.pix_fmt = pixels
        stream.height, stream.width = pictures[0].shape[:2]
        stream.codec_context.gop_size = gop
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def with_matrix(mp4: bytes, matrix: tuple[float, float, float, float]) -> bytes:
    """An MP4 with another display matrix: (a, b, c, d) takes (x, y) to (a x + c y, b x + d y)."""
    a, b, c, d = (round(value * (1 << 16)) for value in matrix)
    start = mp4.index(b"tkhd") + 4 + 40
    fixed = np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30], ">i4").tobytes()
    return mp4[:start] + fixed + mp4[start + len(fixed) :]


def write_audio(path: Path) -> Path:
    """A second of silence."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libopus", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 96000), np.int16), "s16", "stereo")
        frame.rate, frame.pts = 48000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def numbered(index: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A picture that shows its number in eight black or white columns, over a smooth lower half."""
    picture = np.empty((height, width, 3), np.uint8)
    picture[..., 0] = np.linspace(0, 255, width)
    picture[..., 1] = np.linspace(255, 0, height)[:, None]
    picture[..., 2] = 60 + index % 100
    bits = index >> (np.arange(width) * 8 // width) & 1
    picture[: height // 2] = 255 * bits[:, None]
    return picture


def read_numbers(video: np.ndarray) -> list[int]:
    """The numbers that the frames of uint8 [T, H, W, 3] show."""
    width = video.shape[2]
    row = video[:, video.shape[1] // 4].astype(float).mean(-1)
    bits = row[:, ((np.arange(8) + 0.5) * width / 8).astype(int)] > 128
    return (bits << np.arange(8)).sum(1).tolist()


def write_numbered(directory: Path, codec: str, frames: int, name: str = "numbered") -> Path:
    """A video of `frames` numbered frames in that codec's usual container."""
    path = directory / f"{name}.{CODECS[codec][1]}"
    return write_video(path, (numbered(i) for i in range(frames)), codec)


def manifest_of(directory: Path, paths: Iterable[Path], name: str = "manifest.csv") -> Path:
    """Index `paths` and label video i with its index i."""
    entries = [replace(probe_video(path), labels={"index": i}) for i, path in enumerate(paths)]
    write_manifest(directory / name, entries)
    return directory / name


def crash(*_: object) -> None:
    """What a file that FFmpeg crashes on does to its process."""
    os.abort()
