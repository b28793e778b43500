"""One video of a manifest: its facts, their types, and what stands for an unknown one."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np

# The numbers of an entry and their types. In the OPTIONAL ones -1 (or NaN) means unknown.
COLUMNS = {
    "frames": np.int32,
    "fps": np.float64,
    "width": np.int32,
    "height": np.int32,
    "size_bytes": np.int64,
    "mtime_ns": np.int64,
    "duration": np.float64,
    "gop": np.int32,
    "vfr": np.int8,
    "offset": np.int64,
    "rotation": np.int16,
    "stream": np.int16,
    "seek": np.int8,
    "matrix": np.int8,
    "full_range": np.int8,
    "longest_frame": np.float64,
}
BOOLEANS = ("vfr", "full_range")
OPTIONAL = (
    "duration",
    "gop",
    "offset",
    "rotation",
    "stream",
    "seek",
    "matrix",
    "longest_frame",
    *BOOLEANS,
)
LABEL_PREFIX = "label_"  # integers, or the names of classes
VALUE_PREFIX = "value_"  # numbers to predict by regression


class Seek(IntEnum):
    """How a seek finds frame i of a video, the i-th that decoding the whole file yields.

    NEVER: it does not; frames are counted from the start of the file.
    BY_ORDER: a key frame that i frames are stored before is frame i.
    BY_STAMP: the frame with the i-th time stamp is frame i.
    """

    NEVER = 0
    BY_ORDER = 1
    BY_STAMP = 2


@dataclass(frozen=True, slots=True)
class ManifestEntry:
    """One video: where it is, what it shows and how it is stored.

    Attributes:
        path: its file, or `archive.tar::member`.
        frames: frames that decoding yields (container headers are not trusted); 1 for an image.
        fps: average rate in frames per second; 0 for an image.
        width, height: size of the upright picture, in pixels.
        codec: FFmpeg's name, such as "vp9"; of an image "jpeg", "png", "webp", "bmp" or "gif".
        size_bytes: size of the video when it was indexed.
        mtime_ns: modification time of the file (or tar archive) when it was indexed.
        labels: integers by the label's name; where the manifest holds names of classes, the numbers
            that `Entries.class_names` gives them.
        duration: in seconds.
        gop: most frames from a key frame to the next.
        vfr: whether the frame rate is variable: some frame is over half a frame from the time that
            a constant rate gives it.
        offset: position of the video's first byte in its tar archive.
        rotation: degrees clockwise, 0, 90, 180 or 270, by which the stored picture has to be turned
            to be upright.
        stream: which of the file's streams the video is, counted from 0; None where the file has
            only one video stream.
        seek: how a seek finds a frame, a `Seek`.
        matrix: of the conversion from YCbCr to RGB, FFmpeg's number (AVColorSpace): 1 is BT.709, 5
            and 6 are BT.601, 9 is BT.2020. 2 means that the file does not say, 0 that there is none
            (RGB, gray).
        full_range: whether the luma of black is 0 and that of white 255, not 16 and 235. None also
            where H.264 or H.265 is of full range by its container only.

    From `duration` on all are None where they are unknown, as in manifests of older versions. An
    unknown rotation counts as 0, an unknown seek as `Seek.NEVER`.
    """

    path: str
    frames: int
    fps: float
    width: int
    height: int
    codec: str
    size_bytes: int
    mtime_ns: int
    labels: dict[str, int] = field(default_factory=dict)
    duration: float | None = None
    gop: int | None = None
    vfr: bool | None = None
    offset: int | None = None
    rotation: int | None = None
    stream: int | None = None
    seek: int | None = None
    matrix: int | None = None
    full_range: bool | None = None
    longest_frame: float | None = None
    values: dict[str, float] = field(default_factory=dict)

    @property
    def is_image(self) -> bool:
        """Whether it is one picture without a time, which fills any clip."""
        return self.frames == 1 and self.fps <= 0

    @property
    def is_current(self) -> bool:
        """Whether `index` found all there is to know, not an older version of it."""
        return self.seek is not None

    @property
    def stored_size(self) -> tuple[int, int]:
        """Width and height of the stored picture, before it is turned upright."""
        turned = (self.rotation or 0) % 180 == 90
        return (self.height, self.width) if turned else (self.width, self.height)


def unknown(kind: type, count: int) -> np.ndarray:
    """A column of unknown values."""
    return np.full(count, np.nan if kind is np.float64 else -1, kind)


def is_unknown(column: np.ndarray) -> np.ndarray:
    """Which values of a column are unknown: bool [n]."""
    return np.isnan(column) if column.dtype.kind == "f" else column == -1
