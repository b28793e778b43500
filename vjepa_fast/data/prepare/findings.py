"""What a scan found out about files: its journal while it runs, the report of refused files."""

import csv
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from vjepa_fast.data.manifest.entry import ManifestEntry
from vjepa_fast.data.manifest.files import TEXT, replaced_atomically

_REPORT = ["reason", "path", "size_bytes", "mtime_ns", "offset"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file, or a member of a shard (`offset` of its first byte), that may be a video."""

    path: str
    size_bytes: int
    mtime_ns: int
    offset: int | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """What a scan found: the manifest's `entry`, or the reason why the file is refused."""

    candidate: Candidate
    entry: ManifestEntry | None = None
    reason: str = ""


class Journal:
    """The findings of a scan that is under way: JSON lines in a file that goes once it is done."""

    def __init__(self, path: Path, deep: bool) -> None:
        self._path = path
        self._deep = deep

    def read(self) -> list[Finding]:
        """What an interrupted scan found; without a line that was only half written."""
        findings = []
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        for line in lines:
            try:
                row = json.loads(line)
                entry = ManifestEntry(**row["entry"]) if row["entry"] else None
                finding = Finding(Candidate(**row["candidate"]), entry, row["reason"])
                enough = row["deep"] or not self._deep
            except (json.JSONDecodeError, KeyError, TypeError):  # cut off, or of another version
                continue
            if enough:
                findings.append(finding)
        return findings

    def open(self) -> None:
        """Open it, to add to what it holds. Raises OSError."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115
        self._file.write("\n")  # ends a line that was only half written

    def add(self, finding: Finding) -> None:
        """Write a finding down at once."""
        json.dump({"deep": self._deep} | asdict(finding), self._file)
        self._file.write("\n")
        self._file.flush()

    def close(self) -> None:
        """Keep what has been added."""
        self._file.close()

    def remove(self) -> None:
        """Remove the file, once its findings are elsewhere."""
        self._path.unlink(missing_ok=True)


def read_report(path: Path, unreadable: bool = False) -> list[Finding]:
    """The refused files of a report; empty where there is none. Those that were unreadable only if
    asked for: permissions change and the file's time does not.
    """
    if not path.is_file():
        return []
    with open(path, **TEXT) as file:
        return [
            Finding(
                Candidate(
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


def write_report(path: Path, refused: Iterable[Finding]) -> None:
    """Write refused files, with their reasons, as the CSV file `path`. Raises OSError."""
    with replaced_atomically(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_REPORT)
        for finding in refused:
            found = finding.candidate
            writer.writerow(
                [finding.reason, found.path, found.size_bytes, found.mtime_ns, found.offset]
            )
