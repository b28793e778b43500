"""The public trainers' text lists, "path label" a line: probed once, the findings kept beside."""

import fcntl
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from vjepa_fast.data.manifest.entry import Entries, ManifestEntry, entries_of
from vjepa_fast.data.manifest.files import TEXT_READ, read_csv, write_manifest
from vjepa_fast.data.manifest.location import is_in_place
from vjepa_fast.data.prepare.findings import Candidate, Finding, read_report, write_report
from vjepa_fast.data.prepare.inspect import probe_videos
from vjepa_fast.errors import UserError

_SHOWN = 20
_logger = logging.getLogger("vjepa_fast")


def read_text_list(path: str | os.PathLike) -> Entries:
    """The usable videos of a list, with their label as "label"; unusable ones are left out, with a
    warning.

    What probing found is in `<list>.indexed.csv` and `<list>.refused.csv`, and only files that are
    new or changed are probed again. Of several processes one probes and the others wait for it.
    Raises UserError, naming the line, for a malformed list, and where no video is usable.
    """
    path = Path(path)
    labels = _read_labels(path)
    if not labels:
        raise UserError(f"found no video in {path}, expected one a line; name some")
    names = sorted({name for name, _ in labels})
    with _alone(path):
        known, refused = _probe(path, names)
    unusable = [(name, refused[name]) for name in names if name in refused]
    if unusable:
        shown = "; ".join(f"{name}: {reason}" for name, reason in unusable[:_SHOWN])
        more = f"; and {len(unusable) - _SHOWN} more" if len(unusable) > _SHOWN else ""
        message = f"found {len(unusable)} unusable videos in {path} ({shown}{more})"
        if len(unusable) == len(names):
            raise UserError(f"{message}, expected at least one that is sound, correct the list")
        _logger.warning("%s: they are left out", message)
    entries = (replace(known[n], labels={"label": label}) for n, label in labels if n in known)
    return entries_of(entries, str(path))


def _read_labels(path: Path) -> list[tuple[str, int]]:
    folder = Path(os.path.abspath(path)).parent
    labels: list[tuple[str, int]] = []
    with open(path, **TEXT_READ) as file:
        for number, text in enumerate(file, start=1):
            if not text.strip():
                continue
            if "\0" in text:
                raise UserError(
                    f"{path}: found a file that isn't text, expected a manifest; write one with "
                    "`vjepa-fast index DIR --output FILE`"
                )
            name, _, label = text.strip().rpartition(" ")
            line = f"{path}, line {number}"
            if not name:
                raise UserError(
                    f'found {text.strip()!r} in {line}, expected "path label" or the columns that '
                    "`vjepa-fast index` writes, correct it"
                )
            try:
                labels.append((os.path.abspath(folder / name.strip()), int(label)))
            except ValueError:
                raise UserError(
                    f"found label = {label!r} in {line}, expected int, correct it"
                ) from None
    return labels


def _probe(path: Path, names: Sequence[str]) -> tuple[dict[str, ManifestEntry], dict[str, str]]:
    """The entries of the usable files by path, and the reasons of the others."""
    cache = path.with_name(path.name + ".indexed.csv")
    report = path.with_name(path.name + ".refused.csv")
    known = {}
    if cache.is_file():
        known = {
            entry.path: entry
            for entry in read_csv(cache)
            if entry.rotation is not None and is_in_place(entry)  # older versions did not look
        }
    bad = {
        finding.candidate.path: finding
        for finding in read_report(report)
        if _candidate(finding.candidate.path) == finding.candidate
    }
    unknown = [name for name in names if name not in known and name not in bad]
    if unknown:
        _logger.warning("%s: looking into %d videos, once", path, len(unknown))
        found, refused = probe_videos(unknown, progress=True)
        known |= {entry.path: entry for entry in found}
        bad |= {name: Finding(_candidate(name), reason=reason) for name, reason in refused}
        try:
            write_manifest(cache, known.values())
            write_report(report, bad.values())
        except OSError as error:
            _logger.warning("cannot keep the index of a text list in %s (%s)", cache, error)
    return known, {name: finding.reason for name, finding in bad.items()}


def _candidate(path: str) -> Candidate:
    try:
        status = os.stat(path)
    except OSError:
        return Candidate(path, 0, 0)
    return Candidate(path, status.st_size, status.st_mtime_ns)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait until no other process of this machine looks into the list."""
    with open(path, "rb") as file:  # the list itself: its folder may be read-only
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
