"""Text files of any file names, and files that are replaced as a whole."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

# File names need not be UTF-8: surrogateescape carries any bytes there and back.
TEXT = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
TEXT_READ = TEXT | {"encoding": "utf-8-sig"}  # spreadsheets put a byte order mark in front


@contextmanager
def replaced_atomically(path: str | os.PathLike, binary: bool = False) -> Iterator[IO]:
    """Open a file for writing, text unless `binary`, that replaces `path` only once all of it is on
    the disk.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(descriptor, "wb") if binary else open(descriptor, "w", **TEXT) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes it private; a manifest is shared
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
