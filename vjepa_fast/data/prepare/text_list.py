"""Reading the text lists of public trainers ("path label" a line), with a cache of probed files."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from vjepa_fast.data.manifest.class_map import add_classes
from vjepa_fast.data.manifest.entries import Entries, entries_of
from vjepa_fast.data.manifest.entry import ManifestEntry
from vjepa_fast.data.manifest.files import read_csv, write_manifest
from vjepa_fast.data.manifest.labels import LabelReader
from vjepa_fast.data.manifest.location import is_in_place
from vjepa_fast.data.manifest.replaced import TEXT_READ
from vjepa_fast.data.prepare.listing.names import is_named_as_video
from vjepa_fast.data.prepare.scan import scan
from vjepa_fast.data.prepare.scan_journal import (
    ScannedFile,
    read_rejected,
    rejected_path,
    write_rejected,
)
from vjepa_fast.errors import UserError
from vjepa_fast.locks import sole_writer
from vjepa_fast.paths import expanded
from vjepa_fast.progress import with_progress

_LABEL = "label"  # the name of the label that a list gives
_QUOTED = re.compile(r'"((?:[^"]|"")+)"')
_LINE = re.compile(r'([^\t]*\S)\t(\s*[^\s"][^\t"]*)|(.*\S)\s+("(?:[^"]|"")+"|[^\s"]+)')
_SPECIAL = re.compile(r"^~|[\s$]")
_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_SHOWN = 20  # rejected videos that a message names
log = logging.getLogger("vjepa_fast")


def read_text_list(path: str | os.PathLike) -> Entries:
    """The usable videos of a list, with their label as "label"; the others are left out with a
    warning.

    The results of probing are kept in `<list>.indexed.csv` and `<list>.rejected.csv`; only new and
    changed files are probed again. Of several processes one probes and the others wait for it.

    Args:
        path: the list; relative paths in it start at its folder, paths with spaces may be in double
            quotes, and `~`, `$NAME` and `${NAME}` are expanded.

    Raises:
        UserError: the list is malformed (the message names the line) or no video is usable.
    """
    path = Path(path)
    labels, class_names = _read_labels(path)
    if not labels:
        raise UserError(f"{path}: found no video, expected one per line; add some")
    names = sorted({name for name, _ in labels})
    with _locked(path):
        known, rejected = _probe(path, names)
    unusable = [(name, rejected[name]) for name in names if name in rejected]
    if unusable:
        shown = "; ".join(f"{name}: {reason}" for name, reason in unusable[:_SHOWN])
        more = f"; and {len(unusable) - _SHOWN} more" if len(unusable) > _SHOWN else ""
        message = f"{path}: found {len(unusable)} unusable videos ({shown}{more})"
        if len(unusable) == len(names):
            raise UserError(f"{message}, expected at least one valid video; correct the list")
        log.warning("%s: they are left out", message)
    entries = (replace(known[n], labels={_LABEL: label}) for n, label in labels if n in known)
    return entries_of(entries, str(path), class_names)


def _read_labels(path: Path) -> tuple[list[tuple[str, int]], dict[str, list[str]]]:
    """Path and label of each line, and the names of the classes if the labels are names."""
    folder = Path(os.path.abspath(path)).parent
    names, labels, lines = [], [], []
    with open(path, **TEXT_READ) as file:
        for number, text in enumerate(file, start=1):
            if not text.strip():
                continue
            if "\0" in text:
                raise UserError(
                    f"{path}: found a file that isn't text, expected a manifest; write one with "
                    "`vjepa-fast index DIR --output FILE`"
                )
            line = f"{path}, line {number}"
            name, label = name_and_label(text.strip(), line)
            names.append(os.path.abspath(folder / _existing(name, folder, line)))
            labels.append(label)
            lines.append(number)
    reader = LabelReader(_LABEL, str(path))
    numbers = reader.numbers(labels, lines)
    if reader.names:
        class_names = add_classes(folder, {_LABEL: sorted(reader.names)})
        known = {name: i for i, name in enumerate(class_names[_LABEL])}
        numbers = [known[label] for label in labels]
    else:
        class_names = {}
    return list(zip(names, numbers, strict=True)), class_names


def name_and_label(text: str, line: str) -> tuple[str, str]:
    """Name and label of a line; pandas puts one with spaces in quotes, and doubles its quotes.

    Raises UserError for a line of another form.
    """
    found = None if _QUOTED.fullmatch(text) else _LINE.fullmatch(text)
    name, label = map(_unquoted, filter(None, found.groups())) if found else ("", "")
    if not label or is_named_as_video(label):
        raise UserError(
            f'{line}: found {text!r}, expected "path label" or the columns that `vjepa-fast index` '
            "writes; correct it"
        )
    if name.startswith('"'):
        raise _too_many_columns(text, line)
    return name, label


def _unquoted(text: str) -> str:
    quoted = _QUOTED.fullmatch(text)
    return quoted[1].replace('""', '"').strip() if quoted else text.strip()


def _existing(name: str, folder: Path, line: str) -> str:
    """The name, expanded as in a shell if there is no file of that very name.

    Raises UserError for a variable that is not set, and for a name with further columns in it.
    """
    if not _SPECIAL.search(name) or os.path.lexists(folder / name):
        return name
    try:
        found = expanded(name)
    except ValueError as error:
        raise UserError(f"{line}: {error}") from None
    if not os.path.lexists(folder / found):
        words = [word for word in found.split() if not _NUMBER.fullmatch(word)]
        is_path = len(words) == 1 and (Path(words[0]).suffix or os.path.lexists(folder / words[0]))
        if (is_path and words != [found]) or (words[1:] and is_named_as_video(words[0])):
            raise _too_many_columns(name, line)
    return found


def _too_many_columns(text: str, line: str) -> UserError:
    return UserError(
        f'{line}: found more columns than two in {text!r}, expected "path label"; remove the '
        "others, such as the number of frames, e.g. with awk '{print $1, $3}', and put a label of "
        "several words in double quotes"
    )


def _probe(path: Path, names: Sequence[str]) -> tuple[dict[str, ManifestEntry], dict[str, str]]:
    """By path, the entries of the usable files and the reasons of the others."""
    cache = path.with_name(path.name + ".indexed.csv")
    list_of_rejected = rejected_path(path)
    cached = read_csv(cache) if cache.is_file() else []
    known = {entry.path: entry for entry in cached if entry.is_current and is_in_place(entry)}
    rejected = {}
    if not cached or any(entry.is_current for entry in cached):  # an older version rejected others
        rejected = {
            result.file.path: result
            for result in read_rejected(list_of_rejected)
            if _file_at(result.file.path) == result.file
        }
    unknown = [name for name in names if name not in known and name not in rejected]
    if unknown:
        log.warning("%s: probing %d videos; later runs reuse the results", path, len(unknown))
        workers = min(len(os.sched_getaffinity(0)), len(unknown))
        results = scan(map(_file_at, unknown), workers)
        for result in with_progress(results, "indexing", len(unknown), "video"):
            if result.entry is None:
                rejected[result.file.path] = result
            else:
                known[result.file.path] = result.entry
        try:
            write_manifest(cache, [known[name] for name in sorted(known)])
            write_rejected(list_of_rejected, [rejected[name] for name in sorted(rejected)])
        except OSError as error:
            log.warning(
                "cannot write the index of a text list to %s (%s); later runs probe again",
                cache,
                error,
            )
    return known, {name: result.reason for name, result in rejected.items()}


def _file_at(path: str) -> ScannedFile:
    """The file as it is now; probing tells why if it cannot be read."""
    try:
        status = os.stat(path)
    except OSError:
        return ScannedFile(path, 0, 0)
    return ScannedFile(path, status.st_size, status.st_mtime_ns)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock that lets one process probe the list; in a read-only folder, which takes no
    results that another process could wait for, do without."""
    with ExitStack() as stack:
        with suppress(OSError):
            stack.enter_context(sole_writer(path, wait=True))
        yield
