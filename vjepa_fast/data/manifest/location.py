"""Where a video's bytes are: a file, or a member of a tar archive, named `archive.tar::member`.

A member is a contiguous run of bytes in the archive, so it is read in place; nothing is unpacked.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from vjepa_fast.data.manifest.entry import ManifestEntry
from vjepa_fast.errors import UserError

_MEMBER = ".tar::"
_SAMPLE = 20  # files of a manifest that are looked at
_MISSING, _CHANGED, _OTHER_TIME = "missing", "of another size", "of another modification time"


def archive_of(path: str) -> str | None:
    """The tar file in a path of the form `archive.tar::member`; None for any other path."""
    archive, separator, member = path.partition(_MEMBER)
    return f"{archive}.tar" if separator and member else None


def file_of(path: str) -> str:
    """The file on the disk that holds the video."""
    return archive_of(path) or path


def source_url(path: str, offset: int | None, size: int) -> str:
    """The URL for FFmpeg (`av.open`): the path, or the `subfile` protocol for `size` bytes from
    `offset` on.
    """
    if offset is None:
        return path
    return f"subfile,,start,{offset},end,{offset + size},,:{file_of(path)}"


def entry_url(entry: ManifestEntry) -> str:
    """The URL for FFmpeg (`av.open`) of a manifest entry."""
    return source_url(entry.path, entry.offset, entry.size_bytes)


def read_entry(entry: ManifestEntry) -> np.ndarray:
    """The encoded video of a manifest entry: uint8 [size_bytes]. Raises OSError."""
    whole = entry.offset is None
    count = -1 if whole else entry.size_bytes
    return np.fromfile(file_of(entry.path), np.uint8, count, offset=entry.offset or 0)


def is_in_place(entry: ManifestEntry) -> bool:
    """Whether the file (or tar archive) still has the modification time that was indexed, and the
    size; of an archive, whether it still reaches to the member's end.
    """
    return _trouble(entry) is None


def _trouble(entry: ManifestEntry) -> str | None:
    """Why the file is not the one that was indexed; None if it is."""
    try:
        now = os.stat(file_of(entry.path))
    except OSError:
        return _MISSING
    if entry.offset is None:
        same_size = now.st_size == entry.size_bytes
    else:
        same_size = now.st_size >= entry.offset + entry.size_bytes
    if not same_size:
        return _CHANGED
    return None if _is_same_time(now.st_mtime_ns, entry.mtime_ns) else _OTHER_TIME


def _is_same_time(now: int, indexed: int) -> bool:
    """Whether a time in ns is the indexed one, perhaps cut to whole s, ms, us or 100 ns: some file
    systems, tar archives and other ways to copy keep no more of it.
    """
    return any(now == indexed // unit * unit for unit in (1, 100, 1_000, 1_000_000, 1_000_000_000))


def check_sample(entries: Sequence[ManifestEntry], source: str) -> None:
    """Look at a few files of a manifest before hours of work with it.

    Args:
        entries: all its videos.
        source: the manifest, for the message.

    Raises:
        UserError: over half of them are missing, or are not the files that were indexed.
    """
    chosen = np.unique(np.linspace(0, len(entries) - 1, _SAMPLE).astype(int)).tolist()
    found = [(entry.path, trouble) for i in chosen if (trouble := _trouble(entry := entries[i]))]
    if len(found) <= len(chosen) / 2:
        return
    path, trouble = found[0]
    if all(trouble == _OTHER_TIME for _, trouble in found):
        raise UserError(
            f"{source}: found that {len(found)} of {len(chosen)} videos looked at have another "
            f"modification time than when they were indexed, and the same size (the first: {path}),"
            " expected the time as well; copying loses it, so copy with `cp -p` or `rsync -t`, or "
            "run `vjepa-fast index` again, which keeps the labels"
        )
    raise UserError(
        f"{source}: found {len(found)} of {len(chosen)} videos looked at missing or changed since "
        f"they were indexed (the first: {path} is {trouble}), expected the files that the manifest "
        "describes; restore them, or run `vjepa-fast index` again"
    )


def check_unchanged(entry: ManifestEntry) -> None:
    """Raise UserError if the file is missing or is no longer the one that was indexed."""
    if trouble := _trouble(entry):
        what = trouble if trouble == _MISSING else "changed since it was indexed"
        raise UserError(
            f"found {entry.path} {what}, expected the file that its manifest describes "
            f"({entry.size_bytes} bytes, mtime_ns {entry.mtime_ns}); run `vjepa-fast index` again"
        )
