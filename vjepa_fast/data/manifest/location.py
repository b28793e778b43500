"""Where a video's bytes are: a file, or a member of a tar archive, named `archive.tar::member`.

A member is a contiguous run of bytes in the archive, so it is read in place; nothing is unpacked.
"""

from __future__ import annotations

import os

import numpy as np

from vjepa_fast.data.manifest.entry import ManifestEntry
from vjepa_fast.errors import UserError

_MEMBER = ".tar::"


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
    try:
        now = os.stat(file_of(entry.path))
    except OSError:
        return False
    if now.st_mtime_ns != entry.mtime_ns:
        return False
    if entry.offset is None:
        return now.st_size == entry.size_bytes
    return now.st_size >= entry.offset + entry.size_bytes


def check_unchanged(entry: ManifestEntry) -> None:
    """Raise UserError if the file is missing or is no longer the one that was indexed."""
    if not is_in_place(entry):
        there = os.path.exists(file_of(entry.path))
        what = "changed since it was indexed" if there else "missing"
        raise UserError(
            f"found {entry.path} {what}, expected the file that its manifest describes "
            f"({entry.size_bytes} bytes, mtime_ns {entry.mtime_ns}); run `vjepa-fast index` again"
        )
