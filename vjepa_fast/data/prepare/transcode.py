"""Making small copies with frequent key frames, which decode several times faster (`vjepa-fast
transcode`)."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import av

from vjepa_fast.data.ffmpeg import BadVideo
from vjepa_fast.data.manifest.entry import ManifestEntry
from vjepa_fast.data.manifest.files import is_text_list, read_manifest, write_manifest
from vjepa_fast.data.manifest.location import file_of, is_in_place, source_url
from vjepa_fast.data.prepare.encode import CODECS, STAMP, Settings, comment_of, encode_copy
from vjepa_fast.data.prepare.inspect import probe_video
from vjepa_fast.data.prepare.scan import scan
from vjepa_fast.data.prepare.scan_journal import (
    ScannedFile,
    ScanResult,
    rejected_path,
    write_rejected,
)
from vjepa_fast.data.prepare.text_list import read_text_list
from vjepa_fast.errors import UserError
from vjepa_fast.locks import sole_writer
from vjepa_fast.progress import with_progress

_SECONDS = 3600.0  # time limit for a file, without the time for its size
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


@dataclass(frozen=True, slots=True)
class _Source(ScannedFile):
    """A video of the manifest, with its stream and its number of frames."""

    stream: int | None = None
    frames: int = 0


def transcode_manifest(
    manifest: str | os.PathLike,
    output: str | os.PathLike,
    codec: str = "h264",
    short_side: int = 320,
    gop: int = 12,
    workers: int | None = None,
    progress: bool = False,
) -> tuple[Path, list[tuple[str, str]]]:
    """Copy the videos of a manifest: without audio, upright, each frame with its time stamp.

    Copies of the same file and settings are kept, so an interrupted call can be run again to
    resume. A file that is not a copy is never replaced.

    Args:
        manifest: manifest of the originals.
        output: the folder of the copies and their manifest.
        codec: "h264" or "vp9".
        short_side: pixels of a copy's shorter side; copies are never larger than the original.
        gop: frames from one key frame to the next.
        workers: number of processes; None: one per core.
        progress: show the progress.

    Returns:
        The manifest of the copies, of the same name, labels, values and order, and (path, reason)
        of the videos that could not be copied, which `<manifest>.rejected.csv` lists as well.

    Raises:
        UserError: a setting is out of range, nothing can be written, another process writes to the
            folder, a video of the manifest would be overwritten, or no video could be copied.
    """
    manifest, output = Path(manifest), Path(os.path.realpath(output))
    settings = _checked(codec, short_side, gop)
    root = Path(os.path.realpath(manifest.parent))
    if output in (root, Path(os.path.realpath(manifest)).parent):
        raise UserError(
            f"--output: found {output}, which holds the manifest itself, expected another folder, "
            "since the copies' manifest has the same name"
        )
    entries = read_text_list(manifest) if is_text_list(manifest) else read_manifest(manifest)
    sources = {
        entry.path: _Source(
            entry.path,
            entry.size_bytes,
            entry.mtime_ns,
            entry.offset,
            entry.stream,
            entry.frames,
        )
        for entry in entries
    }
    _check_targets(sources, root, output, settings)
    copies, rejected = {}, []
    workers = min(workers or len(os.sched_getaffinity(0)), len(sources))
    copy = partial(_copy, root=root, output=output, settings=settings)
    results = scan(sources.values(), workers, copy, _SECONDS, 1, (__name__,))
    target = output / (manifest.stem + ".csv")
    try:
        output.mkdir(parents=True, exist_ok=True)
        with sole_writer(output, "name another --output"):
            targets = (_target(path, root, output, settings) for path in sources)
            shown = with_progress(results, "transcoding", len(sources), "video")
            with _removing_parts(results, targets):
                for result in shown if progress else results:
                    if result.entry is None:
                        rejected.append(result)
                    else:
                        copies[result.file.path] = result.entry
            made = [
                replace(copies[entry.path], labels=entry.labels, values=entry.values)
                for entry in entries
                if entry.path in copies
            ]
            write_rejected(rejected_path(target), rejected)
            if not made:
                raise UserError(
                    f"{manifest}: found no video that can be copied (the first: "
                    f"{rejected[0].file.path}: {rejected[0].reason}), expected at least one; index "
                    "its folder again"
                )
            write_manifest(target, made, entries.class_names)
    except KeyboardInterrupt:
        done = len(copies) + len(rejected)
        raise KeyboardInterrupt(f"after {done} of {len(sources)} videos") from None
    except OSError as error:
        raise UserError(
            f"--output: found that {output} cannot be written ({error.strerror}), expected a "
            "folder of yours on a disk with space; name another or make space"
        ) from None
    return target, [(result.file.path, result.reason) for result in rejected]


def _checked(codec: str, short_side: int, gop: int) -> Settings:
    if codec not in CODECS:
        raise UserError(
            f"--codec: found {codec!r}, expected one of {', '.join(CODECS)}; choose one of them"
        )
    if short_side < 16 or short_side % 2:
        raise UserError(
            f"--short-side: found {short_side}, expected an even number of at least 16; choose "
            "e.g. 320"
        )
    return Settings(codec, short_side, gop)


def _target(path: str, root: Path, output: Path, settings: Settings) -> Path:
    """The path of a video's copy: below `output` as the video is below `root`, the manifest's
    folder; a video elsewhere keeps its whole path.

    `root` and `output` are real paths. A video that is a symbolic link keeps the link's name.
    """
    folder, name = os.path.split(path.replace(".tar::", ".tar/"))
    video = Path(os.path.realpath(folder)) / name
    copy = video.relative_to(root if video.is_relative_to(root) else video.anchor)
    suffix = settings.suffix
    return output / (copy if copy.suffix == suffix else copy.with_name(copy.name + suffix))


def _check_targets(paths: Collection[str], root: Path, output: Path, settings: Settings) -> None:
    sources = {os.path.realpath(file_of(path)) for path in paths}
    taken: dict[Path, str] = {}
    for path in paths:
        target = _target(path, root, output, settings)
        if target in taken:
            raise UserError(
                f"found that {path} and {taken[target]} would both be copied to {target}, expected "
                "different names; rename one"
            )
        taken[target] = path
        for written in (os.path.realpath(target), os.path.realpath(_part(target))):
            if written in sources:
                raise UserError(
                    f"--output: found that the copy of {path} would overwrite {written}, a video "
                    "of the manifest, expected a folder without any; name another"
                )
            if not Path(written).is_relative_to(output):
                raise UserError(
                    f"--output: found that the copy of {path} would be written to {written}, "
                    f"expected a path in {output}; remove the symbolic link there or name "
                    "another folder"
                )


def _part(target: Path) -> Path:
    """The path of an unfinished copy."""
    return target.with_name(target.name + ".part")


@contextmanager
def _removing_parts(results: Generator, targets: Iterable[Path]) -> Iterator[None]:
    """After an interrupt or an error, end the scan and remove unfinished copies."""
    try:
        yield
    except BaseException:
        results.close()
        for target in targets:
            with suppress(OSError):
                _part(target).unlink()
        raise


def _copy(source: _Source, root: Path, output: Path, settings: Settings) -> ScanResult:
    """Make one copy unless it exists. Raises OSError where nothing can be written at all."""
    target = _target(source.path, root, output, settings)
    stamp = f"{settings.stamp} of {source.size_bytes} bytes, {source.mtime_ns} ns"
    try:
        found = comment_of(target) or ""
        if found == stamp:
            return ScanResult(source, _complete(target, source))
        if source.frames == 1:
            raise BadVideo("an image, which decodes as it is")
        if not found.startswith(STAMP) and target.exists():
            raise BadVideo(f"another file is in the way ({target})")
        _check_source(source)
        url = source_url(source.path, source.offset, source.size_bytes)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = _part(target)
        try:
            encode_copy(url, source.stream, source.frames, part, settings, stamp)
            entry = _complete(part, source)
            os.replace(part, target)  # a file of this name is complete
        finally:
            part.unlink(missing_ok=True)
        return ScanResult(source, replace(entry, path=str(target)))
    except BadVideo as reason:
        return ScanResult(source, reason=str(reason))
    except (av.error.FFmpegError, EOFError) as error:
        if error.errno in _NO_SPACE and not isinstance(error, EOFError):
            raise OSError(error.errno, error.strerror) from None
        return ScanResult(source, reason=f"damaged (FFmpeg: {error.strerror})")


def _check_source(source: _Source) -> None:
    """Raise BadVideo for a file that is missing, changed since it was indexed, or unreadable."""
    if not is_in_place(source):
        there = os.path.exists(file_of(source.path))
        raise BadVideo("changed since it was indexed" if there else "missing")
    try:
        with open(file_of(source.path), "rb"):
            pass
    except OSError as error:
        raise BadVideo(f"unreadable ({error.strerror})") from None


def _complete(copy: Path, source: _Source) -> ManifestEntry:
    """The entry of a copy. Raises BadVideo if it lacks frames: then its source does not decode."""
    entry = probe_video(copy)
    if entry.frames < source.frames:
        raise BadVideo(f"damaged ({entry.frames} of {source.frames} frames can be decoded)")
    return entry
