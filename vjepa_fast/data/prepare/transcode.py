"""`vjepa-fast transcode`: small copies with close key frames, which decode several times faster."""

import errno
import os
from collections.abc import Collection, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import av
from tqdm import tqdm

from vjepa_fast.data.ffmpeg import BadVideo, open_video
from vjepa_fast.data.manifest.entry import Entries, ManifestEntry
from vjepa_fast.data.manifest.files import is_text_list, read_manifest, write_manifest
from vjepa_fast.data.manifest.location import file_of, is_in_place, source_url
from vjepa_fast.data.prepare.encode import CODECS, STAMP, Settings, encode_copy
from vjepa_fast.data.prepare.findings import Candidate, Finding, write_report
from vjepa_fast.data.prepare.inspect import probe_video
from vjepa_fast.data.prepare.scan import scan
from vjepa_fast.data.prepare.text_list import read_text_list
from vjepa_fast.errors import UserError

_LIMIT = 3600  # seconds that a file may take, beside those for its size
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


@dataclass(frozen=True, slots=True)
class _Source(Candidate):
    """A video of the manifest, which says how many frames it has."""

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
    """Copy the videos of a manifest below the folder `output`, without sound, upright, never
    enlarged, each frame with its time stamp, in `workers` processes (None: one a core).

    Returns the copies' manifest, of the same name, labels and order, and the videos that could not
    be copied as (path, reason), which `<manifest>.refused.csv` lists too. Copies of the same file
    and settings are kept, so an interrupted call goes on where it stopped; a file that is no copy
    is never replaced. Raises UserError for settings that cannot be used, where nothing can be
    written, where a video of the manifest would be overwritten and where no video could be copied.
    """
    manifest, output = Path(manifest), Path(os.path.realpath(output))
    settings = _checked(codec, short_side, gop)
    root = Path(os.path.realpath(manifest.parent))
    if output in (root, Path(os.path.realpath(manifest)).parent):
        raise UserError(
            f"--output: found {output}, which holds the manifest itself, expected another folder, "
            "since the copies' manifest has the same name"
        )
    entries = _opened(manifest)
    candidates = {
        entry.path: _Source(
            entry.path, entry.size_bytes, entry.mtime_ns, entry.offset, entry.frames
        )
        for entry in entries
    }
    _check_targets(candidates, root, output, settings)
    copies, refused = {}, []
    workers = min(workers or len(os.sched_getaffinity(0)), len(candidates))
    copy = partial(_copy, root=root, output=output, settings=settings)
    found = scan(candidates.values(), workers, copy, _LIMIT, chunk_size=1)
    target = output / (manifest.stem + ".csv")
    try:
        targets = (_target(path, root, output, settings) for path in candidates)
        bar = tqdm(found, "transcoding", len(candidates), unit="video", disable=not progress)
        with _leaving_no_part(found, targets):
            for finding in bar:
                if finding.entry is None:
                    refused.append(finding)
                else:
                    copies[finding.candidate.path] = finding.entry
        made = [
            replace(copies[entry.path], labels=entry.labels)
            for entry in entries
            if entry.path in copies
        ]
        write_report(target.with_name(target.name + ".refused.csv"), refused)
        if not made:
            raise UserError(
                f"found no video of {manifest} that can be copied (the first: "
                f"{refused[0].candidate.path}: {refused[0].reason}), expected at least one, index "
                "its folder again"
            )
        write_manifest(target, made)
    except KeyboardInterrupt:
        raise UserError(
            f"found an interrupt after {len(copies) + len(refused)} of {len(candidates)} videos, "
            "expected to go through them all, run the same command again to go on from here"
        ) from None
    except OSError as error:
        raise UserError(
            f"--output: found that {output} cannot be written ({error.strerror}), expected a "
            "folder of yours on a disk with space, name another or make space"
        ) from None
    return target, [(finding.candidate.path, finding.reason) for finding in refused]


def _opened(manifest: Path) -> Entries:
    return read_text_list(manifest) if is_text_list(manifest) else read_manifest(manifest)


def _checked(codec: str, short_side: int, gop: int) -> Settings:
    if codec not in CODECS:
        raise UserError(
            f"--codec: found {codec!r}, expected one of {', '.join(CODECS)}, choose one of them"
        )
    if short_side < 16 or short_side % 2:
        raise UserError(
            f"--short-side: found {short_side}, expected an even number of at least 16, choose "
            "e.g. 320"
        )
    return Settings(codec, short_side, gop)


def _target(path: str, root: Path, output: Path, settings: Settings) -> Path:
    """Where a video's copy is: as the video lies to the manifest, or else its whole path.

    `root` and `output` are real paths. The video's own name stays where it is a symbolic link.
    """
    folder, name = os.path.split(path.replace(".tar::", ".tar/"))
    place = Path(os.path.realpath(folder)) / name
    place = place.relative_to(root if place.is_relative_to(root) else place.anchor)
    suffix = settings.suffix
    return output / (place if place.suffix == suffix else place.with_name(place.name + suffix))


def _check_targets(paths: Collection[str], root: Path, output: Path, settings: Settings) -> None:
    sources = {os.path.realpath(file_of(path)) for path in paths}
    taken: dict[Path, str] = {}
    for path in paths:
        target = _target(path, root, output, settings)
        if target in taken:
            raise UserError(
                f"found that {path} and {taken[target]} would both be copied to {target}, expected "
                "names that tell them apart, rename one"
            )
        taken[target] = path
        for written in (os.path.realpath(target), os.path.realpath(_part(target))):
            if written in sources:
                raise UserError(
                    f"--output: found that the copy of {path} would overwrite {written}, a video "
                    "of the manifest, expected a folder without any, name another"
                )
            if not Path(written).is_relative_to(output):
                raise UserError(
                    f"--output: found that the copy of {path} would be written to {written}, "
                    f"expected a place in {output}, remove the symbolic link there or name "
                    "another folder"
                )


def _part(target: Path) -> Path:
    """Where a copy is while it is made."""
    return target.with_name(target.name + ".part")


@contextmanager
def _leaving_no_part(found: Generator, targets: Iterable[Path]) -> Iterator[None]:
    """After an interrupt or an error, end the scan and remove the copies that were being made."""
    try:
        yield
    except BaseException:
        found.close()
        for target in targets:
            with suppress(OSError):
                _part(target).unlink()
        raise


def _copy(candidate: _Source, root: Path, output: Path, settings: Settings) -> Finding:
    """Make one copy unless it is there. Raises OSError where nothing can be written at all."""
    target = _target(candidate.path, root, output, settings)
    stamp = f"{settings.stamp} of {candidate.size_bytes} bytes, {candidate.mtime_ns} ns"
    try:
        found = _stamp(target)
        if found == stamp:
            return Finding(candidate, _whole(target, candidate))
        if candidate.frames == 1:
            raise BadVideo("an image, which decodes as it is")
        if found is None and target.exists():
            raise BadVideo(f"another file is in the way ({target})")
        _check_source(candidate)
        url = source_url(candidate.path, candidate.offset, candidate.size_bytes)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = _part(target)
        try:
            encode_copy(url, part, settings, stamp)
            entry = _whole(part, candidate)
            os.replace(part, target)  # a file of this name is always whole
        finally:
            part.unlink(missing_ok=True)
        return Finding(candidate, replace(entry, path=str(target)))
    except BadVideo as reason:
        return Finding(candidate, reason=str(reason))
    except (av.error.FFmpegError, EOFError) as error:
        if error.errno in _NO_SPACE and not isinstance(error, EOFError):
            raise OSError(error.errno, error.strerror) from None
        return Finding(candidate, reason=f"damaged (FFmpeg: {error.strerror})")


def _check_source(source: _Source) -> None:
    """Raise BadVideo for a file that is gone, another one by now, or may not be read."""
    if not is_in_place(source):
        there = os.path.exists(file_of(source.path))
        raise BadVideo("changed since it was indexed" if there else "missing")
    try:
        with open(file_of(source.path), "rb"):
            pass
    except OSError as error:
        raise BadVideo(f"unreadable ({error.strerror})") from None


def _whole(copy: Path, source: _Source) -> ManifestEntry:
    """The entry of a copy. Raises BadVideo where it lacks frames: its source does not decode."""
    entry = probe_video(copy)
    if entry.frames < source.frames:
        raise BadVideo(f"damaged ({entry.frames} of {source.frames} frames can be decoded)")
    return entry


def _stamp(target: Path) -> str | None:
    """What a copy's comment says of it; None where there is no copy."""
    if not target.is_file():
        return None
    try:
        with open_video(str(target)) as container:
            texts = [text for _, text in container.metadata.items()]
    except av.error.FFmpegError:
        return None
    return next((text for text in texts if text.startswith(STAMP)), None)
