"""Where a video's bytes are: a file of its own, or a member of a tar shard, named
`shard.tar::member`.

A member lies in the shard as one run of bytes, so it is read from its place; nothing is unpacked.
"""

from __future__ import annotations

import os

import numpy as np

from vjepa_fast.data.manifest.entry import ManifestEntry
from vjepa_fast.errors import UserError

_MEMBER = ".tar::"


def shard_of(path: str) -> str | None:
    """The tar file that a path of the form `shard.tar::member` names; None for any other path."""
    shard, separator, member = path.partition(_MEMBER)
    return f"{shard}.tar" if separator and member else None


def file_of(path: str) -> str:
    """The file on the disk that holds the video."""
    return shard_of(path) or path


def source_url(path: str, offset: int | None, size: int) -> str:
    """What FFmpeg (`av.open`) opens: the path, or its `subfile` protocol for `size` bytes from
    `offset` on.
    """
    if offset is None:
        return path
    return f"subfile,,start,{offset},end,{offset + size},,:{file_of(path)}"


def entry_url(entry: ManifestEntry) -> str:
    """What FFmpeg (`av.open`) opens for a manifest entry."""
    return source_url(entry.path, entry.offset, entry.size_bytes)


def read_entry(entry: ManifestEntry) -> np.ndarray:
    """The encoded video of a manifest entry: uint8 [size_bytes]. Raises OSError."""
    whole = entry.offset is None
    count = -1 if whole else entry.size_bytes
    return np.fromfile(file_of(entry.path), np.uint8, count, offset=entry.offset or 0)


def is_in_place(entry: ManifestEntry) -> bool:
    """Whether the file (the shard) still has the size and modification time that were indexed; a
    shard may not have become too short for its member.
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
    """Raise UserError if the file is gone or no longer the one that was indexed."""
    if not is_in_place(entry):
        there = os.path.exists(file_of(entry.path))
        what = "changed since it was indexed" if there else "missing"
        raise UserError(
            f"found {entry.path} {what}, expected the file that its manifest describes "
            f"({entry.size_bytes} bytes, mtime_ns {entry.mtime_ns}); run `vjepa-fast index` again"
        )
