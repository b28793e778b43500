"""The videos of a manifest, stored in columns: about 100 bytes each, so that every process of a run
can hold ten million of them.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from vjepa_fast.data.manifest.entry import (
    BOOLEANS,
    COLUMNS,
    LABEL_PREFIX,
    OPTIONAL,
    VALUE_PREFIX,
    ManifestEntry,
    is_unknown,
    unknown,
)

log = logging.getLogger("vjepa_fast")


class Entries(Sequence[ManifestEntry]):
    """A sequence of ManifestEntry in columns; indexing creates the entry.

    Use `column` for loops over all entries. `EntriesBuilder` makes it. It equals any sequence of
    equal entries.

    Attributes:
        source: the manifest that they were read from, for messages; "" where there is none.
        codecs: the names that the column "codec" numbers.
        class_names: for each label whose column holds names of classes, all names that the classes
            of its manifest's folder have: class i is the i-th. Other labels are not in it.
    """

    def __init__(
        self,
        names: _Texts,
        folders: Sequence[str],
        codecs: Sequence[str],
        columns: Mapping[str, np.ndarray],
        source: str = "",
        class_names: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.source = source
        self._names = names
        self._folders = list(folders)
        self.codecs = list(codecs)
        self._columns = dict(columns)
        for column in self._columns.values():
            column.flags.writeable = False
        self._labels = [name for name in columns if name.startswith(LABEL_PREFIX)]
        self._values = [name for name in columns if name.startswith(VALUE_PREFIX)]
        self.class_names = {label: list(names) for label, names in (class_names or {}).items()}

    @property
    def label_names(self) -> list[str]:
        """The labels that every entry has, in the manifest's order."""
        return [name.removeprefix(LABEL_PREFIX) for name in self._labels]

    @property
    def value_names(self) -> list[str]:
        """The values for regression that every entry has, in the manifest's order."""
        return [name.removeprefix(VALUE_PREFIX) for name in self._values]

    @property
    def images(self) -> np.ndarray:
        """Which of the videos are images, see `ManifestEntry.is_image`: bool [n]."""
        return (self.column("frames") == 1) & (self.column("fps") <= 0)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int | slice) -> ManifestEntry | Entries:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        i = range(len(self))[index]
        numbers = {name: column[i].item() for name, column in self._columns.items()}
        for name in OPTIONAL:
            if name in numbers and is_unknown(self._columns[name][i]):
                numbers[name] = None
        for name in BOOLEANS:
            if numbers.get(name) is not None:
                numbers[name] = bool(numbers[name])
        folder = self._folders[numbers.pop("folder")]
        labels = {name.removeprefix(LABEL_PREFIX): numbers.pop(name) for name in self._labels}
        values = {name.removeprefix(VALUE_PREFIX): numbers.pop(name) for name in self._values}
        codec = self.codecs[numbers.pop("codec")]
        path = str(Path(folder) / self._names[i].decode(errors="surrogateescape"))
        return ManifestEntry(path=path, codec=codec, labels=labels, values=values, **numbers)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None

    def __iter__(self) -> Iterator[ManifestEntry]:
        return (self[i] for i in range(len(self)))

    def column(self, name: str) -> np.ndarray:
        """One column, [n], read-only: a key of COLUMNS, "label_<name>" (int64), "value_<name>"
        (float64), or "codec" (indices into `codecs`). Raises KeyError for one that no entry has.
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
        return Entries(names, self._folders, self.codecs, columns, self.source, self.class_names)

    def numbered_as(self, label: str, names: Sequence[str]) -> Entries:
        """The same with other numbers for a label's classes: those of `names`, class i being the
        i-th; classes that are not among them get the next numbers.
        """
        own = self.class_names[label]
        if own == list(names):
            return self
        numbers = {name: i for i, name in enumerate(dict.fromkeys([*names, *own]))}
        column = LABEL_PREFIX + label
        to_new = np.array([numbers[name] for name in own], np.int64)
        columns = self._columns | {column: to_new[self._columns[column]]}
        known = self.class_names | {label: list(numbers)}
        return Entries(self._names, self._folders, self.codecs, columns, self.source, known)

    @classmethod
    def joined(cls, parts: Sequence[Entries]) -> Entries:
        """Several sequences concatenated, with the labels and values that all of them have.

        Classes of one name become one class. A label that is integers in one sequence and names in
        another is left out with a warning.
        """
        if len(parts) == 1:
            return parts[0]
        parts, labels, class_names = _with_common_labels(parts)
        values = [name for name in parts[0]._values if all(name in p._values for p in parts)]
        codecs = sorted({codec for part in parts for codec in part.codecs})
        first_folder = np.cumsum([0, *(len(part._folders) for part in parts)])
        kinds = COLUMNS | dict.fromkeys(labels, np.int64) | dict.fromkeys(values, np.float64)
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
        names = _Texts.joined([part._names for part in parts])
        return cls(names, folders, codecs, columns, class_names=class_names)

    def _known_or_not(self, name: str, kind: type) -> np.ndarray:
        column = self._columns.get(name)
        return unknown(kind, len(self)) if column is None else column


class EntriesBuilder:
    """Collects entries with paths below `folder`, and these label and value columns, many at a
    time.
    """

    def __init__(self, folder: str, labels: Iterable[str], values: Iterable[str] = ()) -> None:
        self._folder = folder
        self._kinds = COLUMNS | dict.fromkeys(labels, np.int64)
        self._kinds |= dict.fromkeys(values, np.float64) | {"codec": np.uint16}
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

    def build(
        self, source: str = "", class_names: Mapping[str, Sequence[str]] | None = None
    ) -> Entries:
        """All that was added, in order, read from the manifest `source`; call it once."""
        columns = {}
        for name, kind in self._kinds.items():
            column = np.concatenate([np.empty(0, kind), *self._parts.pop(name)])
            if name not in OPTIONAL or not is_unknown(column).all():
                columns[name] = column
        names = _Texts(bytes(self._names), np.array(self._ends, dtype=np.int64))
        columns["folder"] = np.zeros(len(names), np.uint16)
        return Entries(names, [self._folder], list(self._codecs), columns, source, class_names)


def _with_common_labels(
    parts: Sequence[Entries],
) -> tuple[Sequence[Entries], list[str], dict[str, list[str]]]:
    """The parts with one numbering of classes, the label columns of all, the classes' names."""
    columns, class_names = [], {}
    for column in parts[0]._labels:
        label = column.removeprefix(LABEL_PREFIX)
        if any(column not in part._labels for part in parts):
            continue
        named = [part for part in parts if label in part.class_names]
        if 0 < len(named) < len(parts):
            other = next(part for part in parts if label not in part.class_names)
            log.warning(
                "label %r is left out: found names of classes in %s and integers in %s",
                label,
                named[0].source,
                other.source,
            )
            continue
        columns.append(column)
        if named:
            names = list(dict.fromkeys(n for part in parts for n in part.class_names[label]))
            parts = [part.numbered_as(label, names) for part in parts]
            class_names[label] = names
    return parts, columns, class_names


def entries_of(
    entries: Iterable[ManifestEntry],
    source: str = "",
    class_names: Mapping[str, Sequence[str]] | None = None,
) -> Entries:
    """Store entries, all with the same names of labels and of values, in columns.

    Args:
        entries: the videos.
        source: as in `Entries`.
        class_names: the names of the classes that labels of `entries` number.
    """
    entries = list(entries)
    labels = list(entries[0].labels) if entries else []
    values = list(entries[0].values) if entries else []
    numbers: dict[str, list] = {
        LABEL_PREFIX + name: [entry.labels[name] for entry in entries] for name in labels
    }
    numbers |= {VALUE_PREFIX + name: [e.values[name] for e in entries] for name in values}
    builder = EntriesBuilder(
        "", [LABEL_PREFIX + name for name in labels], [VALUE_PREFIX + name for name in values]
    )
    for name in COLUMNS:
        found = [getattr(entry, name) for entry in entries]
        missing = np.nan if COLUMNS[name] is np.float64 else -1
        numbers[name] = [missing if value is None else value for value in found]
    builder.add([e.path for e in entries], [e.codec for e in entries], numbers)
    return builder.build(source, class_names)


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
