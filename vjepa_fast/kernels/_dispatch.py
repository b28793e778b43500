"""Chooses between an op's Triton kernel and its PyTorch reference."""

from __future__ import annotations

import logging
import os
from functools import lru_cache

from torch import Tensor
from triton import knobs

log = logging.getLogger("vjepa_fast.kernels")

# Triton reads TRITON_INTERPRET when a kernel is decorated: at the import of this package.
INTERPRETED = bool(knobs.runtime.interpret)

# Options of every launch. Triton 3.9 warns where this is unset: 3.10 changes the default.
LAUNCH = {"enable_fp_fusion": True}


def use_triton(op: str, tensor: Tensor) -> bool:
    """Whether `op` runs Triton kernels on the device of `tensor`.

    The environment variable VJEPA_FAST_KERNELS decides: unset or "auto" is Triton on CUDA and the
    PyTorch reference elsewhere; "triton" is always Triton (on CPU only under Triton's interpreter:
    TRITON_INTERPRET=1 when this package is imported); "reference" is always the reference. The
    choice is logged once per op and device at level INFO.

    Raises:
        ValueError: another value of the variable; "triton" where Triton can't run.
    """
    return _choose(op, tensor.device.type, os.environ.get("VJEPA_FAST_KERNELS", "auto"))


@lru_cache
def _choose(op: str, device: str, setting: str) -> bool:
    if setting not in ("auto", "triton", "reference"):
        raise ValueError(
            f"VJEPA_FAST_KERNELS: found {setting!r}, expected 'auto', 'triton' or 'reference'; "
            "unset it or set one of these"
        )
    if setting == "triton" and device != "cuda" and not (device == "cpu" and INTERPRETED):
        raise ValueError(
            f"VJEPA_FAST_KERNELS: found 'triton' and a tensor on {device}, expected one on cuda; "
            "set it to 'auto' or, to run the kernels in Triton's slow CPU interpreter, set "
            "TRITON_INTERPRET=1 before the import"
        )
    triton = setting == "triton" or (setting == "auto" and device == "cuda")
    way = ("Triton's interpreter" if INTERPRETED else "Triton") if triton else "PyTorch reference"
    log.info("%s on %s: %s", op, device, way)
    return triton


def checks_index_values(index: Tensor) -> bool:
    """Whether the values of `index` are checked.

    They are on CPU, except where the interpreter stands in for a GPU, and everywhere under
    VJEPA_FAST_CHECK_INDEX=1 (on CUDA a host sync).
    """
    if os.environ.get("VJEPA_FAST_CHECK_INDEX") == "1":
        return True
    return index.device.type == "cpu" and os.environ.get("VJEPA_FAST_KERNELS") != "triton"
