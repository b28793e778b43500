"""Manifest files: a CSV or Parquet table of the videos, their labels and what decoding needs.

Columns: path, label_<name> ..., frames, fps, width, height, codec, size_bytes, mtime_ns, and
duration, gop, vfr, offset, rotation, stream, seek, matrix, full_range, longest_frame where they are
known. A relative path starts at the manifest's folder. size_bytes and mtime_ns are the file's at
indexing time: a file that changed since is rejected, not misread. Parquet takes a ninth of the
bytes of CSV.
"""

from __future__ import annotations

import csv
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import IO, Any, TextIO

from vjepa_fast.data.manifest.entry import LABEL_PREFIX, Entries, EntriesBuilder, ManifestEntry
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
# File names need not be UTF-8: surrogateescape carries any bytes there and back.
TEXT = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
_ROWS = 10_000  # read at a time
TEXT_READ = TEXT | {"encoding": "utf-8-sig"}  # spreadsheets put a byte order mark in front


@contextmanager
def replaced_atomically(path: str | os.PathLike, binary: bool = False) -> Iterator[IO]:
    """Open a file for writing, text unless `binary`, that replaces `path` only once all of it is on
    the disk.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(descriptor, "wb") if binary else open(descriptor, "w", **TEXT) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes it private; a manifest is shared
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def write_manifest(path: str | os.PathLike, entries: Iterable[ManifestEntry]) -> None:
    """Write `entries` as the manifest `path`, atomically: Parquet if it ends in .parquet, else CSV.

    Videos below the manifest's folder are written relative to it, so that the folder can move; a
    relative path in `entries` counts from that folder already.

    Raises:
        UserError: the entries have different label names.
    """
    entries = list(entries)
    folder = _folder(path)
    names = list(entries[0].labels) if entries else []
    known = [name for name in _OPTIONAL_FACTS if any(getattr(e, name) is not None for e in entries)]
    columns = ["path", *(LABEL_PREFIX + name for name in names), *_FACTS, *known]
    rows = []
    for entry in entries:
        if set(entry.labels) != set(names):
            raise UserError(
                f"{entry.path}: found labels {sorted(entry.labels)}, expected {sorted(names)} "
                "as in the first entry; give every video of a manifest the same labels"
            )
        labels = [entry.labels[name] for name in names]
        facts = [getattr(entry, name) for name in (*_FACTS, *known)]
        facts = [int(fact) if isinstance(fact, bool) else fact for fact in facts]
        rows.append([_relative(entry.path, folder), *labels, *facts])
    if _is_parquet(path):
        with replaced_atomically(path, binary=True) as file:
            _write_parquet(file, columns, rows)
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
        entries = _entries(path, *_read_parquet(path))
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
    kinds = _FACTS | dict.fromkeys(labels, int)
    kinds |= {name: kind for name, kind in _OPTIONAL_FACTS.items() if name in columns}
    builder = EntriesBuilder(str(_folder(path)), labels)
    for lines, block in blocks:
        values = dict(zip(columns, block, strict=True))
        found = {
            name: _parsed(values[name], kind, name, path, lines) for name, kind in kinds.items()
        }
        paths = values["path"]
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
    return builder.build(str(path))


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


def _write_parquet(file: IO[bytes], columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write a table; None is a missing value. Raises UserError for a name that is not UTF-8."""
    arrow, parquet = _library()
    try:
        values = {name: [row[i] for row in rows] for i, name in enumerate(columns)}
        parquet.write_table(arrow.table(values), file)
    except UnicodeEncodeError as error:
        raise UserError(
            f"found a file name that is not UTF-8 ({error.object!r}), expected UTF-8 names in a "
            "Parquet manifest; rename the file, or write the manifest as .csv"
        ) from None


def _read_parquet(
    path: Path,
) -> tuple[list[str], Iterator[tuple[range, list[list[Any]]]]]:
    """The columns of a table, and its blocks of rows: their numbers, from 1 on, and for each column
    the values; a missing one is "", as in CSV.

    Raises:
        UserError: no Parquet file; raised here or while the blocks are read.
    """
    arrow, parquet = _library()

    def blocks() -> Iterator[tuple[range, list[list[Any]]]]:
        first = 1
        with _readable(path, arrow), parquet.ParquetFile(path) as file:
            for block in file.iter_batches(_ROWS):
                values = [column.to_pylist() for column in block.columns]
                values = [["" if v is None else v for v in column] for column in values]
                yield range(first, first + block.num_rows), values
                first += block.num_rows

    with _readable(path, arrow), parquet.ParquetFile(path) as file:
        return file.schema_arrow.names, blocks()


@contextmanager
def _readable(path: Path, arrow: ModuleType) -> Iterator[None]:
    try:
        yield
    except (arrow.ArrowInvalid, OSError) as error:
        raise UserError(
            f"{path}: found a file unreadable as Parquet ({error}), expected a manifest; index "
            "again"
        ) from None


def _library() -> tuple[ModuleType, ModuleType]:
    try:
        import pyarrow  # a large import that CSV manifests do not need
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            f"found that pyarrow cannot be imported ({error}), expected pyarrow for a .parquet "
            "manifest; install it, or use a .csv manifest"
        ) from None
    return pyarrow, pyarrow.parquet
