"""CPU threads and memory allocation of a training process."""

from __future__ import annotations

import ctypes
import os

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_KEPT, _MAPPED = 2**31 - 1, 32 << 20  # bytes; the largest values that glibc accepts


def prepare_cpu(world: int) -> None:
    """Set threads and memory allocation of a training process.

    Args:
        world: number of processes of the run.
    """
    _divide_cores(world)
    _keep_freed_memory()


def _divide_cores(world: int) -> None:
    """Divide the cores equally among the ranks of this host, unless OMP_NUM_THREADS is set."""
    if "OMP_NUM_THREADS" not in os.environ:
        # torchrun's name, then that of DeepSpeed's launcher
        names = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE")
        local = next((int(os.environ[name]) for name in names if name in os.environ), world)
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local))


def _keep_freed_memory() -> None:
    """Let a step reuse the memory of the step before, if the allocator is glibc's.

    By default glibc returns the activations' memory to Linux in every backward pass, and Linux
    hands it out again in every forward pass, page by page, each filled with zeros. With a GPU,
    which holds the activations, nothing is changed.
    """
    if torch.cuda.is_available():
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, _KEPT)
        mallopt(_M_MMAP_THRESHOLD, _MAPPED)
