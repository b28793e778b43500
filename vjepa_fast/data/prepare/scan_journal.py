"""What a scan found out about files: its journal while it runs, the list of rejected files."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from vjepa_fast.data.manifest.entry import ManifestEntry
from vjepa_fast.data.manifest.replaced import TEXT, replaced_atomically

_COLUMNS = ["reason", "path", "size_bytes", "mtime_ns", "offset"]


@dataclass(frozen=True, slots=True)
class ScannedFile:
    """A file that may be a video, or a member of a tar archive with the `offset` of its data."""

    path: str
    size_bytes: int
    mtime_ns: int
    offset: int | None = None


@dataclass(frozen=True, slots=True)
class ScanResult:
    """What a scan found: the manifest's `entry`, or the reason why the file is rejected."""

    file: ScannedFile
    entry: ManifestEntry | None = None
    reason: str = ""


class ScanJournal:
    """The results of a running scan as JSON lines, so that an interrupted one can resume."""

    def __init__(self, path: Path, deep: bool) -> None:
        self._path = path
        self._deep = deep

    def read(self) -> list[ScanResult]:
        """The results of an interrupted scan; lines that are incomplete are left out.

        A deep scan takes only the results of deep scans.
        """
        results = []
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        for line in lines:
            try:
                row = json.loads(line)
                entry = ManifestEntry(**row["entry"]) if row["entry"] else None
                result = ScanResult(ScannedFile(**row["file"]), entry, row["reason"])
                deep = row["deep"]
            except (json.JSONDecodeError, KeyError, TypeError):  # truncated, or an older format
                continue
            old = entry is not None and not entry.is_current
            if not old and (deep or not self._deep):
                results.append(result)
        return results

    def open(self) -> None:
        """Open the journal for more results. Raises OSError."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115
        self._file.write("\n")  # ends a truncated line

    def add(self, result: ScanResult) -> None:
        """Write a result at once."""
        json.dump({"deep": self._deep} | asdict(result), self._file)
        self._file.write("\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file, which stays."""
        self._file.close()

    def remove(self) -> None:
        """Remove the file; its results are in the manifest and the list of rejected files."""
        self._path.unlink(missing_ok=True)


def rejected_path(manifest: Path) -> Path:
    """Where the rejected files of a manifest or text list are: `<manifest>.rejected.csv`."""
    return manifest.with_name(manifest.name + ".rejected.csv")


def read_rejected(path: Path, unreadable: bool = False) -> list[ScanResult]:
    """Read a list of rejected files; empty if there is none.

    Files that could not be read are included only with `unreadable`: changing a file's permissions
    does not change its modification time, so they have to be probed again.
    """
    if not path.is_file():
        return []
    with open(path, **TEXT) as file:
        return [
            ScanResult(
                ScannedFile(
                    row["path"],
                    int(row["size_bytes"]),
                    int(row["mtime_ns"]),
                    int(row["offset"]) if row["offset"] else None,
                ),
                reason=row["reason"],
            )
            for row in csv.DictReader(file)
            if unreadable or not row["reason"].startswith("unreadable")
        ]


def write_rejected(path: Path, rejected: Iterable[ScanResult]) -> None:
    """Write rejected files with their reasons as the CSV file `path`. Raises OSError."""
    with replaced_atomically(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_COLUMNS)
        for result in rejected:
            found = result.file
            writer.writerow(
                [result.reason, found.path, found.size_bytes, found.mtime_ns, found.offset]
            )
