"""The videos of a manifest, stored in columns: about 100 bytes each, so that every process of a run
can hold ten million of them.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

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
LABEL_PREFIX = "label_"


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
        labels: integer labels by name.
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

    @property
    def is_current(self) -> bool:
        """Whether `index` found all there is to know, not an older version of it."""
        return self.seek is not None

    @property
    def stored_size(self) -> tuple[int, int]:
        """Width and height of the stored picture, before it is turned upright."""
        turned = (self.rotation or 0) % 180 == 90
        return (self.height, self.width) if turned else (self.width, self.height)


class Entries(Sequence[ManifestEntry]):
    """A sequence of ManifestEntry in columns; indexing creates the entry.

    Use `column` for loops over all entries. `EntriesBuilder` makes it. It equals any sequence of
    equal entries.

    Attributes:
        source: the manifest that they were read from, for messages; "" where there is none.
        codecs: the names that the column "codec" numbers.
    """

    def __init__(
        self,
        names: _Texts,
        folders: Sequence[str],
        codecs: Sequence[str],
        columns: Mapping[str, np.ndarray],
        source: str = "",
    ) -> None:
        self.source = source
        self._names = names
        self._folders = list(folders)
        self.codecs = list(codecs)
        self._columns = dict(columns)
        for column in self._columns.values():
            column.flags.writeable = False
        self._labels = [name for name in columns if name.startswith(LABEL_PREFIX)]

    @property
    def label_names(self) -> list[str]:
        """The labels that every entry has, in the manifest's order."""
        return [name.removeprefix(LABEL_PREFIX) for name in self._labels]

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int | slice) -> ManifestEntry | Entries:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        i = range(len(self))[index]
        numbers = {name: column[i].item() for name, column in self._columns.items()}
        for name in OPTIONAL:
            if name in numbers and _is_unknown(self._columns[name][i]):
                numbers[name] = None
        for name in BOOLEANS:
            if numbers.get(name) is not None:
                numbers[name] = bool(numbers[name])
        folder = self._folders[numbers.pop("folder")]
        labels = {name.removeprefix(LABEL_PREFIX): numbers.pop(name) for name in self._labels}
        codec = self.codecs[numbers.pop("codec")]
        path = str(Path(folder) / self._names[i].decode(errors="surrogateescape"))
        return ManifestEntry(path=path, codec=codec, labels=labels, **numbers)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None

    def __iter__(self) -> Iterator[ManifestEntry]:
        return (self[i] for i in range(len(self)))

    def column(self, name: str) -> np.ndarray:
        """One column, [n], read-only: a key of COLUMNS, "label_<name>" (int64), or "codec" (indices
        into `codecs`). Raises KeyError for an optional one that no entry has.
        """
        return self._columns[name]

    def optional_column(self, name: str) -> np.ndarray:
        """A column of COLUMNS, [n], with -1 (or NaN) where the value is unknown."""
        return self._known_or_not(name, COLUMNS[name])

    def file_names(self) -> Iterator[bytes]:
        """The last part of each path."""
        return (name.rpartition(b"/")[2] for name in self._names)

    def take(self, which: np.ndarray) -> Entries:
        """The entries at these indices (int64), or where a mask (bool [n]) is true."""
        columns = {name: column[which] for name, column in self._columns.items()}
        names = self._names.take(which)
        return Entries(names, self._folders, self.codecs, columns, self.source)

    @classmethod
    def joined(cls, parts: Sequence[Entries]) -> Entries:
        """Several sequences concatenated, with the labels that all of them have."""
        if len(parts) == 1:
            return parts[0]
        labels = [name for name in parts[0]._labels if all(name in p._labels for p in parts)]
        codecs = sorted({codec for part in parts for codec in part.codecs})
        first_folder = np.cumsum([0, *(len(part._folders) for part in parts)])
        kinds = COLUMNS | dict.fromkeys(labels, np.int64)
        columns = {
            name: np.concatenate([part._known_or_not(name, kind) for part in parts])
            for name, kind in kinds.items()
            if any(name in part._columns for part in parts)
        }
        columns["codec"] = np.concatenate(
            [
                np.array([codecs.index(codec) for codec in part.codecs], np.uint16)[
                    part.column("codec")
                ]
                for part in parts
            ]
        )
        columns["folder"] = np.concatenate(
            [
                (part.column("folder") + first).astype(np.uint16)
                for part, first in zip(parts, first_folder, strict=False)
            ]
        )
        folders = [folder for part in parts for folder in part._folders]
        return cls(_Texts.joined([part._names for part in parts]), folders, codecs, columns)

    def _known_or_not(self, name: str, kind: type) -> np.ndarray:
        column = self._columns.get(name)
        return unknown(kind, len(self)) if column is None else column


class EntriesBuilder:
    """Collects entries with paths below `folder` and these label columns, many at a time."""

    def __init__(self, folder: str, label_columns: Iterable[str]) -> None:
        self._folder = folder
        self._kinds = COLUMNS | dict.fromkeys(label_columns, np.int64) | {"codec": np.uint16}
        self._parts: dict[str, list[np.ndarray]] = {name: [] for name in self._kinds}
        self._names, self._ends = bytearray(), array("q", [0])
        self._codecs: dict[str, int] = {}

    def add(
        self, names: Sequence[str], codecs: Sequence[str], numbers: Mapping[str, Sequence]
    ) -> None:
        """Add n videos: their paths relative to the folder, their codecs, and columns [n] of
        numbers, of which optional ones may be missing. Raises OverflowError for a number that its
        column cannot hold.
        """
        for name in names:
            self._names += name.encode(errors="surrogateescape")
            self._ends.append(len(self._names))
        known = self._codecs
        numbers = dict(numbers) | {"codec": [known.setdefault(c, len(known)) for c in codecs]}
        for name, kind in self._kinds.items():
            column = numbers.get(name)
            self._parts[name].append(
                unknown(kind, len(names)) if column is None else np.array(column, kind)
            )

    def build(self, source: str = "") -> Entries:
        """All that was added, in order, read from the manifest `source`; call it once."""
        columns = {}
        for name, kind in self._kinds.items():
            column = np.concatenate([np.empty(0, kind), *self._parts.pop(name)])
            if name not in OPTIONAL or not _is_unknown(column).all():
                columns[name] = column
        names = _Texts(bytes(self._names), np.array(self._ends, dtype=np.int64))
        columns["folder"] = np.zeros(len(names), np.uint16)
        return Entries(names, [self._folder], list(self._codecs), columns, source)


class _Texts:
    """Byte strings in one buffer: string i is `text[ends[i] : ends[i + 1]]`; ends is [n + 1]."""

    def __init__(self, text: bytes, ends: np.ndarray) -> None:
        self._text = text
        self._ends = ends

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, i: int) -> bytes:
        return self._text[self._ends[i] : self._ends[i + 1]]

    def take(self, which: np.ndarray) -> _Texts:
        lengths = np.diff(self._ends)[which]
        text = b"".join(self[i] for i in np.arange(len(self))[which])
        return _Texts(text, np.concatenate([[0], np.cumsum(lengths)]))

    @classmethod
    def joined(cls, parts: Sequence[_Texts]) -> _Texts:
        lengths = np.concatenate([np.diff(part._ends) for part in parts])
        text = b"".join(part._text for part in parts)
        return cls(text, np.concatenate([[0], np.cumsum(lengths)]))


def entries_of(entries: Iterable[ManifestEntry], source: str = "") -> Entries:
    """Store entries, all with the same label names, in columns."""
    entries = list(entries)
    labels = list(entries[0].labels) if entries else []
    builder = EntriesBuilder("", [LABEL_PREFIX + name for name in labels])
    numbers: dict[str, list] = {
        LABEL_PREFIX + name: [entry.labels[name] for entry in entries] for name in labels
    }
    for name in COLUMNS:
        found = [getattr(entry, name) for entry in entries]
        missing = np.nan if COLUMNS[name] is np.float64 else -1
        numbers[name] = [missing if value is None else value for value in found]
    builder.add([e.path for e in entries], [e.codec for e in entries], numbers)
    return builder.build(source)


def unknown(kind: type, count: int) -> np.ndarray:
    """A column of unknown values."""
    return np.full(count, np.nan if kind is np.float64 else -1, kind)


def _is_unknown(column: np.ndarray) -> np.ndarray:
    return np.isnan(column) if column.dtype.kind == "f" else column == -1
