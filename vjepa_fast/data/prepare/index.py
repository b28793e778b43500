"""Scanning a folder for videos or images, rejecting what cannot be trained on, and writing the
manifest of the rest (`vjepa-fast index`)."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from vjepa_fast.data.frames.addressing import NEAR_START
from vjepa_fast.data.manifest.entry import ManifestEntry, Seek
from vjepa_fast.data.manifest.files import read_manifest, write_manifest
from vjepa_fast.data.prepare.labels.added import AddedColumns
from vjepa_fast.data.prepare.labels.folders import FolderLabel
from vjepa_fast.data.prepare.listing.folder import Listing, list_folder
from vjepa_fast.data.prepare.listing.names import (
    IMAGE_EXTENSIONS,
    VIDEO_EXTENSIONS,
    holds_archives,
    in_words,
)
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
from vjepa_fast.progress import with_progress

_GAP = 2.0  # seconds that one frame is shown
_GAP_FRACTION = 0.05  # of the duration: one clip in twenty would fall into it
log = logging.getLogger("vjepa_fast")


def index_directory(
    directory: str | os.PathLike,
    output: str | os.PathLike,
    workers: int | None = None,
    progress: bool = False,
    deep: bool = False,
) -> tuple[list[ManifestEntry], list[tuple[str, str]]]:
    """`list_videos` and `index_listing` in one; logs what is passed over."""
    listing = list_videos(directory, output)
    if listing.passed_over:
        log.warning("%s: passed over %s", directory, in_words(listing.passed_over))
    return index_listing(listing, output, workers, progress, deep)


def list_videos(directory: str | os.PathLike, output: str | os.PathLike) -> Listing:
    """Find the videos below a folder, in files and in tar archives.

    Videos are told by the suffix or, where that says nothing, by the first bytes. Images count only
    where there is no video: beside videos they are mostly thumbnails. Links to folders are
    followed, each folder once; hidden folders are passed over.

    Args:
        directory: the folder.
        output: the manifest that is to be written; its own files are not counted.

    Raises:
        UserError: there is no such folder, or no video in it.
    """
    if not os.path.isdir(directory):
        raise UserError(
            f"{directory}: found no folder, expected a folder with videos; correct the path"
        )
    listing = list_folder(directory, output)
    if not listing.files and not listing.rejected:
        beside = f", but {in_words(listing.passed_over)}" if listing.passed_over else ""
        known = ", ".join(sorted(VIDEO_EXTENSIONS | IMAGE_EXTENSIONS))
        unpack = "; unpack archives" if holds_archives(listing.passed_over) else ""
        raise UserError(
            f"{directory}: found no video file and no image{beside}; expected .tar or {known}; "
            f"give their folder{unpack}"
        )
    return listing


def index_listing(
    listing: Listing,
    output: str | os.PathLike,
    workers: int | None = None,
    progress: bool = False,
    deep: bool = False,
    folder_label: FolderLabel | None = None,
) -> tuple[list[ManifestEntry], list[tuple[str, str]]]:
    """Probe every video of a listing and write the manifest.

    Files whose size and modification time are still those in the manifest, or in its list of
    rejected files, are not opened again. An interrupted call leaves its results in
    `<output>.partial.jsonl`, and the next call resumes from it. Labels and values in an existing
    manifest are kept, by path.

    Args:
        listing: what `list_videos` found.
        output: the manifest, .csv or .parquet. Not written if no file is usable.
        workers: number of processes; None: one per core.
        progress: show the progress.
        deep: decode every frame of every file, also of files that are unchanged.
        folder_label: a label to give every video, by its folder.

    Returns:
        The usable videos, sorted by path, and (path, reason) of the rejected files, which
        `<output>.rejected.csv` lists as well.

    Raises:
        UserError: the output cannot be written, another process writes it, only some of the
            videos have labels, or as `FolderLabel.numbers`.
    """
    output = Path(output)
    try:
        _check_output(output)
        with sole_writer(output, "name another --output"):
            return _index(listing, output, workers, progress, deep, folder_label)
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
    listing: Listing,
    output: Path,
    workers: int | None,
    progress: bool,
    deep: bool,
    folder_label: FolderLabel | None,
) -> tuple[list[ManifestEntry], list[tuple[str, str]]]:
    files, rejected = listing.files, listing.rejected
    list_of_rejected = rejected_path(output)
    journal = ScanJournal(output.with_name(output.name + ".partial.jsonl"), deep)
    old = read_manifest(output) if output.exists() else []
    known = {}
    if not deep:
        known = {result.file: result for result in _results_in(old)}
        if known or not old:  # else an older version wrote both, which rejected sound videos
            known |= {result.file: result for result in read_rejected(list_of_rejected)}
    known |= {result.file: result for result in journal.read()}
    results = [known[file] for file in files if file in known]
    new = [file for file in files if file not in known]
    columns = AddedColumns(old, folder_label)
    before = {r.file.path for r in read_rejected(list_of_rejected, unreadable=True)}
    columns.check([file.path for file in new if file.path not in before], output)
    columns.number([file.path for file in files], output)
    journal.open()
    try:
        for result in _scan(new, workers, deep, progress, len(results)):
            journal.add(result)
            results.append(result)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"after {len(results)} of {len(files)} files") from None
    finally:
        journal.close()
    rejected += [result for result in results if result.entry is None]
    rejected.sort(key=lambda result: result.file.path)
    entries = [result.entry for result in results if result.entry is not None]
    entries.sort(key=lambda entry: entry.path)
    if entries:
        columns.check([entry.path for entry in entries], output)
        entries = list(map(columns.added_to, entries))
        write_manifest(output, entries, columns.class_names)
        _warn_of_gaps(entries, output)
        _warn_of_counted(entries, output)
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
    if progress:
        yield from with_progress(results, "indexing", known + len(new), "video", initial=known)
    else:
        yield from results


def _results_in(entries: list[ManifestEntry]) -> list[ScanResult]:
    """The entries of a manifest, without their labels and values, as results of a scan."""
    return [
        ScanResult(
            ScannedFile(entry.path, entry.size_bytes, entry.mtime_ns, entry.offset),
            replace(entry, labels={}, values={}),
        )
        for entry in entries
        if entry.is_current
    ]


def _warn_of_gaps(entries: list[ManifestEntry], output: Path) -> None:
    gappy = [entry for entry in entries if _has_gap(entry)]
    if gappy:
        longest = max(gappy, key=lambda entry: entry.longest_frame)
        log.warning(
            "%s: found %d videos with a gap in their time stamps (the longest: %s shows one frame "
            "for %.1f of its %.1f s), expected steady ones; clips in seconds (data.fps) avoid such "
            "a gap, others may jump across it: cut the video there if that matters",
            output,
            len(gappy),
            longest.path,
            longest.longest_frame,
            longest.duration,
        )


def _warn_of_counted(entries: list[ManifestEntry], output: Path) -> None:
    counted = [e for e in entries if e.seek == Seek.NEVER and e.frames > NEAR_START]
    if counted:
        longest = max(counted, key=lambda entry: entry.frames)
        log.warning(
            "%s: found %d videos in which no seek finds a frame (the longest: %s, %d frames), "
            "expected time stamps that tell the order of frames; they are decoded from the start, "
            "which is slow in long ones: `vjepa-fast transcode` makes copies that can be sought",
            output,
            len(counted),
            longest.path,
            longest.frames,
        )


def _has_gap(entry: ManifestEntry) -> bool:
    """Whether one frame is shown for most of a clip, and far longer than the others are."""
    if entry.frames < 3 or not entry.longest_frame or not entry.duration:
        return False
    usual = (entry.duration - entry.longest_frame) / (entry.frames - 1)
    return entry.longest_frame > max(_GAP, _GAP_FRACTION * entry.duration, 10 * usual)
