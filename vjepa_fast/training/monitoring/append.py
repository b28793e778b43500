"""Lines at the end of a file, on a disk that may be full for a while."""

from __future__ import annotations

import os
from pathlib import Path


class Lines:
    """Appends whole lines. What finds no room waits in memory for the next time, and half a line
    that was written is taken back, so that the file holds whole lines at all times.

    Args:
        path: the file; made if need be.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._size = os.fstat(self._file).st_size
        self._waiting = b""

    def append(self, line: str) -> None:
        """Write a line, and those that wait. Raises OSError where they still have to."""
        self._waiting += line.encode() + b"\n"
        written, error = 0, None
        while written < len(self._waiting) and error is None:
            try:
                written += os.write(self._file, self._waiting[written:])
            except OSError as raised:
                error = raised
        if error is not None:
            os.ftruncate(self._file, self._size)
            raise error
        self._size, self._waiting = self._size + written, b""

    def close(self) -> None:
        """Close the file; what still waits is lost."""
        os.close(self._file)
