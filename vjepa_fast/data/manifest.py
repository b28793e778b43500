"""The manifest: a CSV or Parquet file of the videos, their labels and what decoding has to know.

Columns: path, label_<name> ..., frames, fps, width, height, codec, size_bytes, mtime_ns, and
duration, gop, vfr, offset, rotation where they are known. A relative path starts at the manifest's
folder. size_bytes and mtime_ns pin the file as it was indexed, so that a changed file is refused,
not misread.
"""

import csv
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TextIO

from vjepa_fast.data.source import file_of, is_in_place
from vjepa_fast.errors import UserError

LABEL_PREFIX = "label_"
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
# A file name need not be UTF-8: surrogateescape carries any bytes there and back.
TEXT = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
_READ = TEXT | {"encoding": "utf-8-sig"}  # spreadsheets put a byte order mark in front


@dataclass(frozen=True, slots=True)
class ManifestEntry:
    """One video: where it is, what it shows (integer labels by name) and how it is stored.

    `frames` counts the frames that decoding gives (container headers are not trusted), `fps` is the
    average rate in frames per second, `width` and `height` are the upright picture's, `codec` is
    FFmpeg's name ("vp9"), `size_bytes` and `mtime_ns` are the file's when it was indexed.

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


def check_unchanged(entry: ManifestEntry) -> None:
    """Raise UserError if the file is gone or no longer the one that was indexed."""
    if not is_in_place(entry):
        there = os.path.exists(file_of(entry.path))
        what = "changed since it was indexed" if there else "missing"
        raise UserError(
            f"found {entry.path} {what}, expected the file that its manifest describes "
            f"({entry.size_bytes} bytes, mtime_ns {entry.mtime_ns}), run `vjepa-fast index` again"
        )


@contextmanager
def replaced_atomically(path: str | os.PathLike, binary: bool = False) -> Iterator[IO]:
    """Open a file for writing, text unless `binary`, that takes the place of `path` only once all
    of it is on the disk.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(descriptor, "wb") if binary else open(descriptor, "w", **TEXT) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes it private, a manifest is shared
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def write_manifest(path: str | os.PathLike, entries: Iterable[ManifestEntry]) -> None:
    """Write `entries` as the manifest `path`, atomically: Parquet if that ends in .parquet, else
    CSV.

    Videos below the manifest's folder are written relative to it, so that the folder can move; a
    relative path in `entries` counts from that folder already. Raises UserError where entries carry
    different label names.
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
                f"found labels {sorted(entry.labels)} for {entry.path}, expected {sorted(names)} "
                "as in the first entry, give every video of a manifest the same labels"
            )
        labels = [entry.labels[name] for name in names]
        facts = [getattr(entry, name) for name in (*_FACTS, *known)]
        facts = [int(fact) if isinstance(fact, bool) else fact for fact in facts]
        rows.append([_relative(entry.path, folder), *labels, *facts])
    if _is_parquet(path):
        from vjepa_fast.data.parquet import write_parquet

        with replaced_atomically(path, binary=True) as file:
            write_parquet(file, columns, rows)
    else:
        with replaced_atomically(path) as file:
            csv.writer(file, lineterminator="\n").writerows([columns, *rows])


def read_manifest(path: str | os.PathLike) -> list[ManifestEntry]:
    """Read a manifest, or a text list of the public trainers ("path label" a line); the paths come
    back absolute.

    A text list says nothing about the videos, so they are probed, see `text_list.read_text_list`.
    Raises UserError for a missing, empty or malformed file, naming the line.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"found no manifest at {path}, expected a CSV file, write one with "
            f"`vjepa-fast index DIR --output {path}`"
        )
    if _is_parquet(path):
        from vjepa_fast.data.parquet import read_parquet

        columns, rows = read_parquet(path)
        entries = _entries(path, columns, enumerate(rows, start=1))
        return _not_empty(path, entries)
    try:
        with open(path, **_READ) as file:
            first = file.readline()
            file.seek(0)
            if first.split(",")[0].strip().strip('"') == "path":
                entries = _read_rows(path, file)
            else:
                from vjepa_fast.data.text_list import read_text_list  # needs PyAV, a CSV does not

                entries = read_text_list(path, file)
    except csv.Error as error:
        raise UserError(
            f"found {path} unreadable as CSV ({error}), expected a manifest, index again"
        ) from None
    return _not_empty(path, entries)


def read_csv(path: Path) -> list[ManifestEntry]:
    """Read a CSV manifest, which may be empty. Raises UserError for a malformed one."""
    with open(path, **_READ) as file:
        return _read_rows(path, file)


def _is_parquet(path: str | os.PathLike) -> bool:
    return Path(path).suffix.lower() == ".parquet"


def _not_empty(path: Path, entries: list[ManifestEntry]) -> list[ManifestEntry]:
    if not entries:
        raise UserError(
            f"found no video in {path}, expected one a line, index a folder that holds some"
        )
    return entries


def _folder(path: str | os.PathLike) -> Path:
    return Path(os.path.abspath(path)).parent  # symbolic links stay as the user made them


def _relative(path: str, folder: Path) -> str:
    absolute = Path(os.path.abspath(folder / path))
    return str(absolute.relative_to(folder) if absolute.is_relative_to(folder) else absolute)


def _read_rows(path: Path, file: TextIO) -> list[ManifestEntry]:
    reader = csv.DictReader(file)
    return _entries(path, reader.fieldnames or [], ((reader.line_num, row) for row in reader))


def _entries(
    path: Path, columns: Sequence[str], rows: Iterable[tuple[int, dict]]
) -> list[ManifestEntry]:
    missing = [name for name in _FACTS if name not in columns]
    if missing:
        raise UserError(
            f"found no column {', '.join(missing)} in {path}, expected what `vjepa-fast index` "
            "writes, run it and add label_<name> columns to its output"
        )
    labels = [name for name in columns if name.startswith(LABEL_PREFIX)]
    known = {name: kind for name, kind in _OPTIONAL_FACTS.items() if name in columns}
    folder = _folder(path)
    entries = []
    for number, row in rows:
        line = f"{path}, line {number}"
        if None in row or None in row.values() or not row["path"]:
            raise UserError(
                f"found a row of another length in {line}, expected {len(columns)} columns, "
                "fix or remove it"
            )
        facts = {name: _number(row[name], kind, name, line) for name, kind in _FACTS.items()}
        for name, kind in known.items():
            facts[name] = None if row[name] == "" else _number(row[name], kind, name, line)
        if facts.get("vfr") is not None:
            facts["vfr"] = bool(facts["vfr"])
        if min(facts["frames"], facts["width"], facts["height"]) < 1:
            raise UserError(
                f"found no frames or no size in {line}, expected at least 1, index the video again"
            )
        if facts.get("rotation") not in (None, 0, 90, 180, 270):
            raise UserError(
                f"found rotation = {facts['rotation']} in {line}, expected 0, 90, 180 or 270 "
                "degrees clockwise, index the video again"
            )
        entries.append(
            ManifestEntry(
                path=str(folder / row["path"]),
                labels={
                    name.removeprefix(LABEL_PREFIX): _number(row[name], int, name, line)
                    for name in labels
                },
                **facts,
            )
        )
    return entries


def _number(text: Any, kind: type, name: str, line: str) -> int | float | str:
    try:
        return kind(text)
    except ValueError:
        raise UserError(
            f"found {name} = {text!r} in {line}, expected {kind.__name__}, correct it"
        ) from None
