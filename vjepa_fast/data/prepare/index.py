"""`vjepa-fast index`: scan a folder for videos or images, refuse what cannot be trained on, write
the manifest.
"""

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
from vjepa_fast.data.prepare.findings import Candidate, Finding, Journal, read_report, write_report
from vjepa_fast.data.prepare.scan import probe_candidate, scan
from vjepa_fast.errors import UserError

_CONTAINERS = "3gp avi flv m2ts m4v mkv mov mp4 mpeg mpg ogv ts webm wmv"
VIDEO_EXTENSIONS = frozenset(f".{name}" for name in _CONTAINERS.split())
IMAGE_EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
_KNOWN = VIDEO_EXTENSIONS | IMAGE_EXTENSIONS
_logger = logging.getLogger("vjepa_fast")


def index_directory(
    directory: str | os.PathLike,
    output: str | os.PathLike,
    workers: int | None = None,
    progress: bool = False,
    deep: bool = False,
) -> tuple[list[ManifestEntry], list[tuple[str, str]]]:
    """Probe every video file below `directory`, and every one in a .tar shard there, and write the
    usable ones, sorted by path, as the manifest `output`. Where there is no video, images are
    probed instead; beside videos they are left out, as thumbnails mostly are no data.

    Returns them and the refused ones as (path, reason), which `<output>.refused.csv` lists too.
    Files with the size and modification time that they have in either list are not opened again,
    unless `deep` asks for pictures to be decoded. What an interrupted call found is in
    `<output>.partial.jsonl`, with which the next one goes on. Labels that `output` holds already
    are kept by path. Links to folders are followed, each folder once. If nothing is usable no
    manifest is written. Raises UserError where there is no video file at all, or if only some of
    the videos have labels there.
    """
    directory, output = Path(directory), Path(output)
    if not directory.is_dir():
        raise UserError(
            f"found no folder at {directory}, expected one with videos, correct the path"
        )
    refused: list[Finding] = []
    candidates = _videos_or_images(list(_candidates(directory, refused)), directory)
    if not candidates and not refused:
        known = ", ".join(sorted(VIDEO_EXTENSIONS | IMAGE_EXTENSIONS))
        raise UserError(
            f"found no video file and no image in {directory}, expected .tar or {known}, give the "
            "folder that holds them"
        )
    try:
        return _index(candidates, refused, output, workers, progress, deep)
    except OSError as error:
        raise UserError(
            f"--output: found that {output} cannot be written or read there ({error.strerror}), "
            "expected a file in a folder of yours, name another"
        ) from None


def _index(
    candidates: list[Candidate],
    refused: list[Finding],
    output: Path,
    workers: int | None,
    progress: bool,
    deep: bool,
) -> tuple[list[ManifestEntry], list[tuple[str, str]]]:
    if output.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if output.suffix not in (".csv", ".parquet"):
        raise UserError(
            f"--output: found {output}, expected a name that ends in .csv or .parquet, add one"
        )
    report = output.with_name(output.name + ".refused.csv")
    journal = Journal(output.with_name(output.name + ".partial.jsonl"), deep)
    old = read_manifest(output) if output.exists() else []
    known = {} if deep else {f.candidate: f for f in [*_of_manifest(old), *read_report(report)]}
    known |= {finding.candidate: finding for finding in journal.read()}
    findings = [known[candidate] for candidate in candidates if candidate in known]
    new = [candidate for candidate in candidates if candidate not in known]
    labels = {entry.path: entry.labels for entry in old if entry.labels}
    before = {finding.candidate.path for finding in read_report(report, unreadable=True)}
    _check_labelled([c.path for c in new if c.path not in before], labels, output)
    journal.open()
    try:
        for finding in _scan(new, workers, deep, progress, len(findings)):
            journal.add(finding)
            findings.append(finding)
    except KeyboardInterrupt:
        raise UserError(
            f"found an interrupt after {len(findings)} of {len(candidates)} files, expected to go "
            "through them all, run the same command again to go on from here"
        ) from None
    finally:
        journal.close()
    refused += [finding for finding in findings if finding.entry is None]
    refused.sort(key=lambda finding: finding.candidate.path)
    entries = [finding.entry for finding in findings if finding.entry is not None]
    entries.sort(key=lambda entry: entry.path)
    if entries:
        if labels:
            _check_labelled([entry.path for entry in entries], labels, output)
            entries = [replace(entry, labels=labels[entry.path]) for entry in entries]
        write_manifest(output, entries)
    write_report(report, refused)
    journal.remove()
    return entries, [(finding.candidate.path, finding.reason) for finding in refused]


def _scan(
    new: list[Candidate], workers: int | None, deep: bool, progress: bool, known: int
) -> Iterator[Finding]:
    if not new:
        return
    workers = min(workers or len(os.sched_getaffinity(0)), len(new))
    findings = scan(new, workers, partial(probe_candidate, deep=deep))
    yield from tqdm(
        findings, "indexing", known + len(new), initial=known, unit="video", disable=not progress
    )


def _candidates(directory: Path, refused: list[Finding]) -> Iterator[Candidate]:
    """Every file that may be a video or an image, by path; what can't even be listed goes to
    `refused`.
    """

    def refuse(path: str, reason: str) -> None:
        refused.append(Finding(Candidate(path, 0, 0), reason=reason))

    def unreadable(error: OSError) -> None:
        refuse(os.path.abspath(error.filename), f"unreadable folder ({error.strerror})")

    seen = set()
    start = os.path.abspath(directory)
    for folder, folders, names in os.walk(start, onerror=unreadable, followlinks=True):
        try:
            status = os.stat(folder)
        except OSError as error:  # gone since it was listed
            unreadable(error)
            continue
        if (status.st_dev, status.st_ino) in seen:  # a link to a folder that is indexed already
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        for name in sorted(names):
            extension = os.path.splitext(name)[1].lower()
            if extension not in _KNOWN and extension != ".tar":
                continue
            path = os.path.join(folder, name)
            try:
                found = os.stat(path)
            except OSError as error:
                refuse(path, f"unreadable ({error.strerror})")
                continue
            if not stat.S_ISREG(found.st_mode):
                refuse(path, "not a regular file")
            elif extension != ".tar":
                yield Candidate(path, found.st_size, found.st_mtime_ns)
            else:
                try:
                    yield from _members(path, found.st_mtime_ns)
                except (tarfile.TarError, OSError, EOFError) as error:
                    refuse(path, f"unreadable tar shard ({error})")


def _videos_or_images(candidates: list[Candidate], directory: Path) -> list[Candidate]:
    """The videos, or, where there is none, the images."""
    videos = [c for c in candidates if os.path.splitext(c.path)[1].lower() in VIDEO_EXTENSIONS]
    images = len(candidates) - len(videos)
    if videos and images:
        _logger.warning(
            "%s: images beside videos are left out (%d); index them in a folder of their own",
            directory,
            images,
        )
    return videos or candidates


def _members(shard: str, mtime_ns: int) -> list[Candidate]:
    """The videos and images in a tar shard; only the members' headers are read."""
    with tarfile.open(shard, "r:") as tar:
        return [
            Candidate(f"{shard}::{member.name}", member.size, mtime_ns, member.offset_data)
            for member in tar
            if member.isreg() and os.path.splitext(member.name)[1].lower() in _KNOWN
        ]


def _of_manifest(entries: list[ManifestEntry]) -> list[Finding]:
    """What a manifest says about its files, without their labels."""
    return [
        Finding(
            Candidate(entry.path, entry.size_bytes, entry.mtime_ns, entry.offset),
            replace(entry, labels={}),
        )
        for entry in entries
        if entry.rotation is not None  # else it is of a version that found out less
    ]


def _check_labelled(paths: list[str], labels: dict[str, dict[str, int]], output: Path) -> None:
    """Indexing again must not lose the label columns that somebody added to the manifest."""
    unlabelled = [path for path in paths if path not in labels]
    if labels and unlabelled:
        raise UserError(
            f"found {len(unlabelled)} videos without labels in {output} (the first: "
            f"{unlabelled[0]}), expected all or none of them labelled, write to another --output "
            "and add the labels there"
        )
