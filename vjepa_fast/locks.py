"""Locks that keep two commands from writing to the same place, also from two hosts."""

from __future__ import annotations

import datetime
import errno
import fcntl
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vjepa_fast.errors import UserError

_HELD = (errno.EACCES, errno.EAGAIN)
log = logging.getLogger("vjepa_fast")


@contextmanager
def sole_writer(place: Path, instead: str = "", wait: bool = False) -> Iterator[None]:
    """A context in which this process is the only one that writes to a folder or a file.

    The lock is on a hidden file, `.lock` in the folder or `.<file>.lock`, which names its owner's
    host and process. The system frees it when its owner ends, even by `kill -9`. It also holds
    between hosts, over NFS and other file systems with POSIX locks; where there are none, a warning
    says so. It does not exclude other threads of this process. The file stays: a host that has not
    yet noticed its removal would lock the removed one.

    Args:
        place: the folder, which exists, or the file, whose folder exists.
        instead: what to do other than wait for the other process, for the message.
        wait: wait for the other process, which the log names, instead of raising.

    Raises:
        UserError: another process holds it; the message names it.
        OSError: the lock's file cannot be made.
    """
    path = place / ".lock" if place.is_dir() else place.with_name(f".{place.name}.lock")
    # Closing any other descriptor of this file would free the lock: POSIX locks belong to the
    # process. Its children do not inherit them.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # of another user, who has done the same
            os.fchmod(descriptor, 0o666)
        _lock(descriptor, place, instead, wait)
        with suppress(OSError):  # a full disk
            now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
            owner = f"host {platform.node()}, process {os.getpid()}, since {now}\n"
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, owner.encode(), 0)
            os.fsync(descriptor)  # for the other hosts
        yield
        with suppress(OSError):
            os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, place: Path, instead: str, wait: bool) -> None:
    try:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _HELD:
                raise
            owner = os.pread(descriptor, 4096, 0).decode(errors="replace").strip() or "just begun"
            if not wait:
                raise UserError(
                    f"{place}: found that another process writes to it ({owner}), expected one at "
                    f"a time; wait for its end, or {instead}"
                ) from None
            log.info("%s: waiting for another process that works on it (%s)", place, owner)
            fcntl.lockf(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        log.warning(
            "%s: cannot be locked (%s); start nothing else that writes to it",
            place,
            error.strerror,
        )
