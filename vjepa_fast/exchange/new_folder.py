"""Makes a folder that is either complete or not there."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from vjepa_fast.errors import UserError
from vjepa_fast.locks import sole_writer
from vjepa_fast.training.checkpoint.format import sync

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_EXISTS = {errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR}
T = TypeVar("T")


def require_new(output: Path) -> None:
    """Raise UserError if there is something of this name."""
    if os.path.lexists(output):
        raise UserError(
            f"--output: found {output}, which exists, expected a new folder; name another one, or "
            "remove it"
        )


def write_new_folder(output: Path, size: int, fill: Callable[[Path], T]) -> T:
    """Fill a hidden folder beside the output, and rename it when it is complete.

    Args:
        output: the folder to make.
        size: bytes that it will have.
        fill: writes and syncs the files of the folder that it is given.

    Returns:
        what `fill` returned.

    Raises:
        UserError: the output exists, another process makes it, or the disk is full. Nothing is
            left behind then, nor if `fill` raises.
    """
    hidden = output.with_name(f".{output.name}.writing")
    new_parents = [path for path in output.parents if not path.exists()]  # the innermost first
    try:
        require_new(output)
        _make(hidden, output)
        with sole_writer(hidden, "name another output"):
            try:
                for stale in hidden.glob("[!.]*"):  # left by a killed process
                    shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
                _require_space(output, size)
                result = fill(hidden)
                for path in (*hidden.iterdir(), hidden):
                    sync(path)
                hidden.rename(output)
            except BaseException:
                shutil.rmtree(hidden, ignore_errors=True)
                raise
            (output / ".lock").unlink()
        sync(output.parent)
    except BaseException as error:
        for path in new_parents:
            with suppress(OSError):  # not made, or in use by now
                path.rmdir()
        if not isinstance(error, OSError):
            raise
        if error.errno in _EXISTS:
            require_new(output)  # made meanwhile
        if error.errno not in _DISK_FULL:
            raise
        raise UserError(
            f"{output}: found {error.strerror} while writing, expected room for {size / 1e6:.1f} "
            "MB; free some, or name another output"
        ) from None
    return result


def _make(hidden: Path, output: Path) -> None:
    try:
        hidden.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise
        raise UserError(
            f"--output: found {output}, which cannot be made ({error.strerror}), expected a place "
            "for a new folder; name another one"
        ) from None


def _require_space(output: Path, size: int) -> None:
    free = shutil.disk_usage(output.parent).free
    if free < size:
        raise UserError(
            f"{output}: found {free / 1e6:.1f} MB of free disk, expected {size / 1e6:.1f} MB; free "
            "some, or name another output"
        )
