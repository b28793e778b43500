"""Scanning a folder for videos or images, rejecting what cannot be trained on, and writing the
manifest of the rest (`vjepa-fast index`)."""

from __future__ import annotations

import errno
import logging
import os
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from tqdm import tqdm

from vjepa_fast.data.manifest.entry import ManifestEntry
from vjepa_fast.data.manifest.files import read_manifest, write_manifest
from vjepa_fast.data.prepare.scan import probe_file, scan
from vjepa_fast.data.prepare.scan_journal import (
    ScanJournal,
    ScannedFile,
    ScanResult,
    read_rejected,
    rejected_path,
    write_rejected,
)
from vjepa_fast.errors import UserError
from vjepa_fast.locks import sole_writer

_CONTAINERS = "3gp avi flv m2ts m4v mkv mov mp4 mpeg mpg ogv ts webm wmv"
VIDEO_EXTENSIONS = frozenset(f".{name}" for name in _CONTAINERS.split())
IMAGE_EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
_KNOWN = VIDEO_EXTENSIONS | IMAGE_EXTENSIONS
log = logging.getLogger("vjepa_fast")


def index_directory(
    directory: str | os.PathLike,
    output: str | os.PathLike,
    workers: int | None = None,
    progress: bool = False,
    deep: bool = False,
) -> tuple[list[ManifestEntry], list[tuple[str, str]]]:
    """Probe every video below a folder, in files and in tar archives, and write the manifest.

    Images are probed only where there is no video: beside videos they are mostly thumbnails. Links
    to folders are followed, each folder once. Files whose size and modification time are still
    those in the manifest, or in its list of rejected files, are not opened again. An interrupted
    call leaves its results in `<output>.partial.jsonl`, and the next call resumes from it. Labels
    in an existing manifest are kept, by path.

    Args:
        directory: the folder.
        output: the manifest, .csv or .parquet. Not written if no file is usable.
        workers: number of processes; None: one per core.
        progress: show a progress bar.
        deep: decode a few frames of every file, also of files that are unchanged.

    Returns:
        The usable videos, sorted by path, and (path, reason) of the rejected files, which
        `<output>.rejected.csv` lists as well.

    Raises:
        UserError: there is no video file at all, the output cannot be written, another process
            writes it, or only some of the videos have labels.
    """
    directory, output = Path(directory), Path(output)
    if not directory.is_dir():
        raise UserError(
            f"{directory}: found no folder, expected a folder with videos; correct the path"
        )
    rejected: list[ScanResult] = []
    files = _videos_or_images(list(_list_files(directory, rejected)), directory)
    if not files and not rejected:
        known = ", ".join(sorted(_KNOWN))
        raise UserError(
            f"{directory}: found no video file and no image, expected .tar or {known}; give the "
            "folder that holds them"
        )
    try:
        _check_output(output)
        with sole_writer(output, "name another --output"):
            return _index(files, rejected, output, workers, progress, deep)
    except OSError as error:
        raise UserError(
            f"--output: found that {output} cannot be written or read ({error.strerror}), "
            "expected a path that you can write to; name another"
        ) from None


def _check_output(output: Path) -> None:
    if output.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if output.suffix not in (".csv", ".parquet"):
        raise UserError(
            f"--output: found {output}, expected a name that ends in .csv or .parquet; rename it"
        )
    output.parent.mkdir(parents=True, exist_ok=True)


def _index(
    files: list[ScannedFile],
    rejected: list[ScanResult],
    output: Path,
    workers: int | None,
    progress: bool,
    deep: bool,
) -> tuple[list[ManifestEntry], list[tuple[str, str]]]:
    list_of_rejected = rejected_path(output)
    journal = ScanJournal(output.with_name(output.name + ".partial.jsonl"), deep)
    old = read_manifest(output) if output.exists() else []
    known = {}
    if not deep:
        known = {r.file: r for r in [*_results_in(old), *read_rejected(list_of_rejected)]}
    known |= {result.file: result for result in journal.read()}
    results = [known[file] for file in files if file in known]
    new = [file for file in files if file not in known]
    labels = {entry.path: entry.labels for entry in old if entry.labels}
    before = {r.file.path for r in read_rejected(list_of_rejected, unreadable=True)}
    _check_labels([file.path for file in new if file.path not in before], labels, output)
    journal.open()
    try:
        for result in _scan(new, workers, deep, progress, len(results)):
            journal.add(result)
            results.append(result)
    except KeyboardInterrupt:
        raise UserError(
            f"found an interrupt after {len(results)} of {len(files)} files, expected to probe all "
            "of them; run the same command again to resume"
        ) from None
    finally:
        journal.close()
    rejected += [result for result in results if result.entry is None]
    rejected.sort(key=lambda result: result.file.path)
    entries = [result.entry for result in results if result.entry is not None]
    entries.sort(key=lambda entry: entry.path)
    if entries:
        if labels:
            _check_labels([entry.path for entry in entries], labels, output)
            entries = [replace(entry, labels=labels[entry.path]) for entry in entries]
        write_manifest(output, entries)
    write_rejected(list_of_rejected, rejected)
    journal.remove()
    return entries, [(result.file.path, result.reason) for result in rejected]


def _scan(
    new: list[ScannedFile], workers: int | None, deep: bool, progress: bool, known: int
) -> Iterator[ScanResult]:
    if not new:
        return
    workers = min(workers or len(os.sched_getaffinity(0)), len(new))
    results = scan(new, workers, partial(probe_file, deep=deep))
    yield from tqdm(
        results, "indexing", known + len(new), initial=known, unit="video", disable=not progress
    )


def _list_files(directory: Path, rejected: list[ScanResult]) -> Iterator[ScannedFile]:
    """Every file that may be a video or an image, by path. What cannot be listed goes to
    `rejected`.
    """

    def reject(path: str, reason: str) -> None:
        rejected.append(ScanResult(ScannedFile(path, 0, 0), reason=reason))

    def unreadable(error: OSError) -> None:
        reject(os.path.abspath(error.filename), f"unreadable folder ({error.strerror})")

    visited = set()
    start = os.path.abspath(directory)
    for folder, folders, names in os.walk(start, onerror=unreadable, followlinks=True):
        try:
            status = os.stat(folder)
        except OSError as error:  # removed since it was listed
            unreadable(error)
            continue
        if (status.st_dev, status.st_ino) in visited:  # by a link
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        for name in sorted(names):
            extension = os.path.splitext(name)[1].lower()
            if extension not in _KNOWN and extension != ".tar":
                continue
            path = os.path.join(folder, name)
            try:
                found = os.stat(path)
            except OSError as error:
                reject(path, f"unreadable ({error.strerror})")
                continue
            if not stat.S_ISREG(found.st_mode):
                reject(path, "not a regular file")
            elif extension != ".tar":
                yield ScannedFile(path, found.st_size, found.st_mtime_ns)
            else:
                try:
                    yield from _members(path, found.st_mtime_ns)
                except (tarfile.TarError, OSError, EOFError) as error:
                    reject(path, f"unreadable tar archive ({error})")


def _videos_or_images(files: list[ScannedFile], directory: Path) -> list[ScannedFile]:
    """The videos, or the images if there is no video."""
    videos = [f for f in files if os.path.splitext(f.path)[1].lower() in VIDEO_EXTENSIONS]
    images = len(files) - len(videos)
    if videos and images:
        log.warning(
            "%s: images beside videos are left out (%d); index them in a folder of their own",
            directory,
            images,
        )
    return videos or files


def _members(archive: str, mtime_ns: int) -> list[ScannedFile]:
    """The videos and images in a tar archive; reads only the members' headers."""
    with tarfile.open(archive, "r:") as tar:
        return [
            ScannedFile(f"{archive}::{member.name}", member.size, mtime_ns, member.offset_data)
            for member in tar
            if member.isreg() and os.path.splitext(member.name)[1].lower() in _KNOWN
        ]


def _results_in(entries: list[ManifestEntry]) -> list[ScanResult]:
    """The entries of a manifest, without their labels, as results of a scan."""
    return [
        ScanResult(
            ScannedFile(entry.path, entry.size_bytes, entry.mtime_ns, entry.offset),
            replace(entry, labels={}),
        )
        for entry in entries
        if entry.is_current
    ]


def _check_labels(paths: list[str], labels: dict[str, dict[str, int]], output: Path) -> None:
    """Indexing again must not lose the label columns that somebody added to the manifest."""
    unlabeled = [path for path in paths if path not in labels]
    if labels and unlabeled:
        raise UserError(
            f"{output}: found {len(unlabeled)} videos without labels (the first: {unlabeled[0]}), "
            "expected labels for all videos or for none; write to another --output and add the "
            "labels there"
        )
