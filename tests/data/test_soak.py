"""20,000 clips through each loader, some of them undecodable: memory stays flat."""

from __future__ import annotations

import ctypes
import gc
import os
import time
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from tests.helpers import videos
from vjepa_fast.data.loader import make_loader
from vjepa_fast.data.manifest.files import read_manifest
from vjepa_fast.data.plan.crops import Augment
from vjepa_fast.data.plan.planner import ClipPlanner

CLIPS, BATCH = 20_000, 16
MEBIBYTE = 2**20


def resident() -> float:
    """This process's resident memory, MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MEBIBYTE


def of_its_own(pid: int) -> float:
    """The unshared memory of a worker process, MiB."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    lines = [line.split() for line in text.splitlines() if line.startswith("Private_")]
    return sum(int(kib) for _, kib, _ in lines) / 1024


class Heap(ctypes.Structure):
    """glibc's `struct mallinfo2`: bytes, over all of its arenas."""

    _fields_: ClassVar = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks"),
            *("uordblks", "fordblks", "keepcost"),
        )
    ]


_mallinfo2 = ctypes.CDLL(None).mallinfo2
_mallinfo2.restype = Heap


def in_use() -> float:
    """What malloc has given out and not got back, MiB: without its reserve, which comes and goes by
    tens of MiB, and without what Python would collect some day."""
    gc.collect()
    heap = _mallinfo2()
    return (heap.uordblks + heap.hblkhd) / MEBIBYTE


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["dali", "pyav"])
def test_memory_stays_flat(tmp_path, backend, capsys):
    paths = []
    for i in range(60):
        pictures = (videos.numbered(k, 72, 96) for k in range(60))
        paths.append(videos.write_video(tmp_path / f"{i}.webm", pictures, "vp9"))
    planner = ClipPlanner(
        [read_manifest(videos.manifest_of(tmp_path, paths))],
        num_frames=8,
        frame_step=4,
        augment=Augment(),
    )
    paths[7].unlink()  # one in sixty clips is replaced
    batches = (range(i, i + BATCH) for i in range(0, CLIPS, BATCH))
    log = tmp_path / "bad.jsonl"
    live, whole, workers, start = [], [], [], time.monotonic()
    with make_loader(planner, batches, 64, backend, bad_videos=log) as loader:
        for number, batch in enumerate(loader, start=1):
            assert batch.video.shape == (BATCH, 8, 64, 64, 3)
            if number % (CLIPS // BATCH // 50) == 0:
                whole.append(resident())
                live.append(in_use())
                pids = loader._decoder.pool.pids if backend == "pyav" else []
                workers.append(max(map(of_its_own, pids), default=0.0))
    seconds = time.monotonic() - start
    assert number * BATCH == CLIPS
    assert len(log.read_text().splitlines()) > CLIPS / 60 / 2

    live, whole, workers = (
        [float(np.median(part)) for part in np.array_split(values, 10)]
        for values in (live, whole, workers)
    )
    with capsys.disabled():
        print(f"\n{backend}: {CLIPS / seconds:.0f} clips/s; by tenths of the way, MiB")
        print("in use", *(f"{value:.0f}" for value in live))
        print("resident", *(f"{value:.0f}" for value in whole))
        print("of a worker alone", *(f"{value:.0f}" for value in workers))
    # A leak of a hundredth of the clips' pixels would be 17 MiB from the second tenth on.
    assert live[-1] - live[1] < 8
    assert workers[-1] - workers[1] < 8
    assert whole[-1] - whole[1] < 128
