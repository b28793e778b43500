"""Manifest files: a CSV or Parquet table of the videos, their labels and what decoding needs.

Columns: path, label_<name> ..., value_<name> ..., frames, fps, width, height, codec, size_bytes,
mtime_ns, and duration, gop, vfr, offset, rotation, stream, seek, matrix, full_range, longest_frame
where they are known. A label is an integer, or a name that the folder's `classes.json` numbers. A
relative path starts at the manifest's folder. size_bytes and mtime_ns are the file's at indexing
time: a file that changed since is rejected, not misread. Parquet takes a ninth of the bytes of CSV.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TextIO

from vjepa_fast.data.manifest.class_map import add_classes
from vjepa_fast.data.manifest.entries import Entries, EntriesBuilder
from vjepa_fast.data.manifest.entry import LABEL_PREFIX, VALUE_PREFIX, ManifestEntry
from vjepa_fast.data.manifest.labels import LabelReader, read_values
from vjepa_fast.data.manifest.parquet import read_parquet, write_parquet
from vjepa_fast.data.manifest.replaced import TEXT_READ, replaced_atomically
from vjepa_fast.errors import UserError

_FACTS = {
    "frames": int,
    "fps": float,
    "width": int,
    "height": int,
    "codec": str,
    "size_bytes": int,
    "mtime_ns": int,
}
_OPTIONAL_FACTS = {"duration": float, "gop": int, "vfr": int, "offset": int, "rotation": int}
_OPTIONAL_FACTS |= {"stream": int, "seek": int, "matrix": int, "full_range": int}
_OPTIONAL_FACTS |= {"longest_frame": float}
_ROWS = 10_000  # read at a time


def write_manifest(
    path: str | os.PathLike,
    entries: Iterable[ManifestEntry],
    class_names: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Write `entries` as the manifest `path`, atomically: Parquet if it ends in .parquet, else CSV.

    Videos below the manifest's folder are written relative to it, so that the folder can move; a
    relative path in `entries` counts from that folder already.

    Args:
        path: of the manifest.
        entries: the videos.
        class_names: by label, the names of the classes that the entries number: the manifest gets
            the names, and the classes of its folder get those that they lack, see `class_map`.

    Raises:
        UserError: the entries have different names of labels or values.
    """
    entries = list(entries)
    class_names = class_names or {}
    folder = _folder(path)
    labels = list(entries[0].labels) if entries else []
    values = list(entries[0].values) if entries else []
    known = [name for name in _OPTIONAL_FACTS if any(getattr(e, name) is not None for e in entries)]
    rows = []
    for entry in entries:
        _check_same("labels", entry.labels, labels, entry.path)
        _check_same("values", entry.values, values, entry.path)
        own = [
            class_names[name][entry.labels[name]] if name in class_names else entry.labels[name]
            for name in labels
        ]
        own += [entry.values[name] for name in values]
        facts = [getattr(entry, name) for name in (*_FACTS, *known)]
        facts = [int(fact) if isinstance(fact, bool) else fact for fact in facts]
        rows.append([_relative(entry.path, folder), *own, *facts])
    columns = ["path", *(LABEL_PREFIX + name for name in labels)]
    columns += [*(VALUE_PREFIX + name for name in values), *_FACTS, *known]
    folder.mkdir(parents=True, exist_ok=True)
    add_classes(folder, class_names)
    if _is_parquet(path):
        with replaced_atomically(path, binary=True) as file:
            write_parquet(file, columns, rows)
    else:
        with replaced_atomically(path) as file:
            csv.writer(file, lineterminator="\n").writerows([columns, *rows])


def read_manifest(path: str | os.PathLike) -> Entries:
    """Read a manifest; the paths come back absolute.

    Raises:
        UserError: a missing, empty or malformed file; the message names the line.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"{path}: found no manifest, expected a CSV or Parquet file; write one with "
            f"`vjepa-fast index DIR --output {path}`"
        )
    if _is_parquet(path):
        entries = _entries(path, *read_parquet(path, _ROWS))
    elif path.stat().st_size == 0:
        entries = []
    else:
        entries = read_csv(path)
    if not entries:
        raise UserError(f"{path}: found no video, expected one per line; index a folder of videos")
    return entries


def is_text_list(path: str | os.PathLike) -> bool:
    """Whether a file is a text list of the public trainers ("path label" a line), not a manifest,
    whose first line begins with "path,".
    """
    path = Path(path)
    if _is_parquet(path) or not path.is_file():
        return False
    with open(path, **TEXT_READ) as file:
        return file.readline().split(",")[0].strip().strip('"') != "path"


def read_csv(path: Path) -> Entries:
    """Read a CSV manifest that may hold no video. Raises UserError for a malformed one."""
    try:
        with open(path, **TEXT_READ) as file:
            return _read_rows(path, file)
    except csv.Error as error:
        raise UserError(
            f"{path}: found a file unreadable as CSV ({error}), expected a manifest; index again"
        ) from None


def _is_parquet(path: str | os.PathLike) -> bool:
    return Path(path).suffix.lower() == ".parquet"


def _folder(path: str | os.PathLike) -> Path:
    return Path(os.path.abspath(path)).parent  # symbolic links stay as the user made them


def _check_same(what: str, found: Collection[str], expected: list[str], path: str) -> None:
    if set(found) != set(expected):
        raise UserError(
            f"{path}: found {what} {sorted(found)}, expected {sorted(expected)} as in the first "
            f"entry; give every video of a manifest the same {what}"
        )


def _relative(path: str, folder: Path) -> str:
    absolute = Path(os.path.abspath(folder / path))
    return str(absolute.relative_to(folder) if absolute.is_relative_to(folder) else absolute)


def _read_rows(path: Path, file: TextIO) -> Entries:
    reader = csv.reader(file)
    columns = next(reader, [])

    def blocks() -> Iterator[tuple[list[int], list[Sequence]]]:
        rows = ((reader.line_num, row) for row in reader if row)
        while block := list(islice(rows, _ROWS)):
            for number, row in block:
                if len(row) != len(columns):
                    raise _other_length(path, number, columns)
            yield (
                [number for number, _ in block],
                list(zip(*(row for _, row in block), strict=True)),
            )

    return _entries(path, columns, blocks())


def _entries(
    path: Path, columns: Sequence[str], blocks: Iterable[tuple[Sequence[int], Sequence[Sequence]]]
) -> Entries:
    """Entries from blocks of rows: their line numbers and, for each column, their values."""
    missing = [name for name in ("path", *_FACTS) if name not in columns]
    if missing:
        raise UserError(
            f"{path}: found no column {', '.join(missing)}, expected the columns that `vjepa-fast "
            "index` writes; run it and add label_<name> columns to its output"
        )
    labels = [name for name in columns if name.startswith(LABEL_PREFIX)]
    values = [name for name in columns if name.startswith(VALUE_PREFIX)]
    readers = {name: LabelReader(name, str(path)) for name in labels}
    kinds = _FACTS | {name: kind for name, kind in _OPTIONAL_FACTS.items() if name in columns}
    builder = EntriesBuilder(str(_folder(path)), labels, values)
    for lines, block in blocks:
        cells = dict(zip(columns, block, strict=True))
        found = {
            name: _parsed(cells[name], kind, name, path, lines) for name, kind in kinds.items()
        }
        found |= {name: reader.numbers(cells[name], lines) for name, reader in readers.items()}
        found |= {name: read_values(cells[name], name, str(path), lines) for name in values}
        paths = cells["path"]
        if not all(paths):
            raise _other_length(path, lines[list(map(bool, paths)).index(False)], columns)
        _check_rows(found, path, lines)
        try:
            builder.add(paths, found.pop("codec"), found)
        except OverflowError as error:
            raise UserError(
                f"{path}, lines {lines[0]} to {lines[-1]}: found a number out of range ({error}), "
                "expected the numbers that `vjepa-fast index` writes; index the videos again"
            ) from None
    appeared = {name.removeprefix(LABEL_PREFIX): r.names for name, r in readers.items() if r.names}
    entries = builder.build(str(path), appeared)
    numbered = add_classes(_folder(path), {label: sorted(n) for label, n in appeared.items()})
    for label, names in numbered.items():
        entries = entries.numbered_as(label, names)
    return entries


def _parsed(values: Sequence, kind: type, name: str, path: Path, lines: Sequence[int]) -> list:
    """The values of a column as `kind`; unknown ones as in `entry.COLUMNS`."""
    unknown = math.nan if kind is float else -1
    if name in _OPTIONAL_FACTS:
        values = [unknown if value == "" else value for value in values]
    try:
        return list(map(kind, values))
    except ValueError:
        for line, value in zip(lines, values, strict=True):
            try:
                kind(value)
            except ValueError:
                raise UserError(
                    f"{path}, line {line}: found {name} = {value!r}, expected {kind.__name__}; "
                    "correct it"
                ) from None
        raise


def _check_rows(found: dict[str, list], path: Path, lines: Sequence[int]) -> None:
    smallest = list(map(min, found["frames"], found["width"], found["height"]))
    if min(smallest) < 1:
        line = lines[[size < 1 for size in smallest].index(True)]
        raise UserError(
            f"{path}, line {line}: found no frames or no size, expected frames, width and height "
            "of at least 1; index the video again"
        )
    for line, degrees in zip(lines, found.get("rotation", ()), strict=False):
        if degrees not in (-1, 0, 90, 180, 270):
            raise UserError(
                f"{path}, line {line}: found rotation = {degrees}, expected 0, 90, 180 or 270 "
                "degrees clockwise; index the video again"
            )


def _other_length(path: Path, line: int, columns: Sequence[str]) -> UserError:
    return UserError(
        f"{path}, line {line}: found too few or too many columns, expected {len(columns)}; fix or "
        "remove the line"
    )
