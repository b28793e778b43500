"""What a process asks of the machine's cores and memory."""

from __future__ import annotations

import ctypes
import os

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_KEPT, _MAPPED = 2**31 - 1, 32 << 20  # bytes; the largest values that glibc takes


def prepare_cpu(world: int) -> None:
    """Threads and memory of a process that trains, one of `world`."""
    _share_cores(world)
    _keep_freed_memory()


def _share_cores(world: int) -> None:
    """Give the ranks of one machine equal shares of its cores, unless OMP_NUM_THREADS says how."""
    if "OMP_NUM_THREADS" not in os.environ:
        # torchrun's name, and that of DeepSpeed's launcher
        names = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE")
        local = next((int(os.environ[name]) for name in names if name in os.environ), world)
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local))


def _keep_freed_memory() -> None:
    """Let a step use the last one's memory again, where the allocator is glibc's.

    By default it hands the activations' memory back to Linux in every backward pass, and Linux
    gives it out anew in every forward pass, page by page, each filled with zeros. Where there is a
    GPU, which holds the activations, nothing is changed.
    """
    if torch.cuda.is_available():
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, _KEPT)
        mallopt(_M_MMAP_THRESHOLD, _MAPPED)
