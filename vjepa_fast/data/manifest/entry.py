"""The videos of a manifest, held in columns: about a hundred bytes each, so that every process of a
run may hold ten million of them.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

# Numbers of an entry, and how they are held. In those that may be unknown -1 (or NaN) means that.
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
}
OPTIONAL = ("duration", "gop", "vfr", "offset", "rotation")
LABEL_PREFIX = "label_"


@dataclass(frozen=True, slots=True)
class ManifestEntry:
    """One video: where it is, what it shows (integer labels by name) and how it is stored.

    `frames` counts the frames that decoding gives (container headers are not trusted), `fps` is the
    average rate in frames per second, `width` and `height` are the upright picture's, `codec` is
    FFmpeg's name ("vp9"; of an image, which has one frame and fps 0, "jpeg", "png", "webp" or
    "bmp"), `size_bytes` and `mtime_ns` are the file's when it was indexed.

    Known to manifests of this version on: `duration` in seconds, `gop` the most frames from a key
    frame to the next, `vfr` whether frames come at a variable rate (some are over half a frame off
    the place that a constant rate gives them), and for a video in a tar shard (path
    `shard.tar::member`) the `offset` of its first byte; `mtime_ns` is then the shard's.
    `rotation`: the degrees clockwise, 0, 90, 180 or 270, by which a stored picture has to be turned
    to be upright; None, of an older manifest, is 0.
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

    @property
    def stored_size(self) -> tuple[int, int]:
        """Width and height of the pictures as they are stored, before they are turned upright."""
        turned = (self.rotation or 0) % 180 == 90
        return (self.height, self.width) if turned else (self.width, self.height)


class Entries(Sequence[ManifestEntry]):
    """A sequence of ManifestEntry that makes them when they are asked for.

    What goes over all of them takes `column`. Made by `EntriesBuilder`; equal to any sequence of
    equal entries.
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
        if numbers.get("vfr") is not None:
            numbers["vfr"] = bool(numbers["vfr"])
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
        """One fact of all entries, [n], read-only: see COLUMNS, or "label_<name>" (int64), or
        "codec" (numbers of `codecs`). Raises KeyError for an optional one that no entry has.
        """
        return self._columns[name]

    def file_names(self) -> Iterator[bytes]:
        """The last part of each path."""
        return (name.rpartition(b"/")[2] for name in self._names)

    def take(self, which: np.ndarray) -> Entries:
        """The entries at these places (int64), or where a mask (bool [n]) is true."""
        columns = {name: column[which] for name, column in self._columns.items()}
        names = self._names.take(which)
        return Entries(names, self._folders, self.codecs, columns, self.source)

    @classmethod
    def joined(cls, parts: Sequence[Entries]) -> Entries:
        """Several, one after another, with the labels that all of them have."""
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
    """Gathers entries below `folder`, many at a time, with these label columns."""

    def __init__(self, folder: str, label_columns: Iterable[str]) -> None:
        self._folder = folder
        self._kinds = COLUMNS | dict.fromkeys(label_columns, np.int64) | {"codec": np.uint16}
        self._parts: dict[str, list[np.ndarray]] = {name: [] for name in self._kinds}
        self._names, self._ends = bytearray(), array("q", [0])
        self._codecs: dict[str, int] = {}

    def add(
        self, names: Sequence[str], codecs: Sequence[str], numbers: Mapping[str, Sequence]
    ) -> None:
        """Add n videos: their paths from the folder on, and columns [n] of numbers; optional ones
        may be missing. Raises OverflowError for a number that its column cannot hold.
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
    """Byte strings in one: the i-th lies between the i-th and the next of the `ends`, [n + 1]."""

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
    """Entries with the same label names, in columns."""
    entries = list(entries)
    labels = list(entries[0].labels) if entries else []
    builder = EntriesBuilder("", [LABEL_PREFIX + name for name in labels])
    numbers: dict[str, list] = {
        LABEL_PREFIX + name: [entry.labels[name] for entry in entries] for name in labels
    }
    for name in COLUMNS:
        found = [getattr(entry, name) for entry in entries]
        numbers[name] = [-1 if value is None else value for value in found]
    numbers["duration"] = [np.nan if e.duration is None else e.duration for e in entries]
    builder.add([e.path for e in entries], [e.codec for e in entries], numbers)
    return builder.build(source)


def unknown(kind: type, count: int) -> np.ndarray:
    """A column of unknown values."""
    return np.full(count, np.nan if kind is np.float64 else -1, kind)


def _is_unknown(column: np.ndarray) -> np.ndarray:
    return np.isnan(column) if column.dtype.kind == "f" else column == -1
