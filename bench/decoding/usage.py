"""CPU time and memory of this process and its descendants, since PyAV decodes in processes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

_QUIET = 0.03  # seconds with hardly any CPU time, after which nothing is taken to run


def family() -> list[int]:
    """Ids of this process and its descendants."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    found = [os.getpid()]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def cpu_seconds(pids: Sequence[int] | None = None) -> float:
    """CPU time of these processes so far; None: of the family."""
    seconds = 0.0
    for pid in family() if pids is None else pids:
        with suppress(OSError):  # it has ended
            seconds += time.clock_gettime(~pid << 3 | 2)  # Linux: the CPU-time clock of a process
    return seconds


def resident_mib() -> float:
    """Memory of the family; pages that they share are counted once."""
    kib = 0
    for pid in family():
        with suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            kib += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return kib / 1024


def until_quiet(pids: Sequence[int]) -> float:
    """Wait until these processes do nothing; when that began, by `time.perf_counter`.

    A thread that is ready to run, but has no core on a busy machine, is not quiet.
    """
    ended, before = time.perf_counter(), cpu_seconds(pids)
    while time.perf_counter() - ended < _QUIET or _is_ready(pids):
        time.sleep(_QUIET / 10)
        now = cpu_seconds(pids)
        if now - before > _QUIET / 100:  # more than this look itself costs
            ended = time.perf_counter()
        before = now
    return ended


def _is_ready(pids: Sequence[int]) -> bool:
    """Whether a thread of these processes, but the calling one, runs, is ready to or reads a disk
    (state R or D).
    """
    for pid in pids:
        for path in Path(f"/proc/{pid}/task").glob("[0-9]*/stat"):
            with suppress(OSError):  # it has ended
                state = path.read_text().rpartition(")")[2].split()[0]
                if state in "RD" and int(path.parent.name) != threading.get_native_id():
                    return True
    return False
