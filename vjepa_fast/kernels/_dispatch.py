"""Whether an op runs its Triton kernel or its reference."""

from __future__ import annotations

import logging
import os
from functools import lru_cache

from torch import Tensor
from triton import knobs

logger = logging.getLogger("vjepa_fast.kernels")

# Triton decides at a kernel's decoration, that is when this package is imported.
INTERPRETED = bool(knobs.runtime.interpret)

# Options of every launch. Triton 3.9 warns where this is left to a default that 3.10 will change.
LAUNCH = {"enable_fp_fusion": True}


def use_triton(op: str, tensor: Tensor) -> bool:
    """Whether `op` shall launch Triton kernels for tensors on this one's device.

    The environment variable VJEPA_FAST_KERNELS decides: unset or "auto" means Triton on CUDA and
    the plain-PyTorch reference elsewhere; "triton" insists on Triton (on CPU that takes Triton's
    interpreter: TRITON_INTERPRET=1 when this package is imported); "reference" the opposite. The
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
            "set it to 'auto' or, to run kernels on a CPU slowly, set TRITON_INTERPRET=1 before "
            "the import"
        )
    triton = setting == "triton" or (setting == "auto" and device == "cuda")
    way = "the reference in PyTorch" if not triton else "Triton"
    way = "Triton's interpreter" if triton and INTERPRETED else way
    logger.info("%s on %s: %s", op, device, way)
    return triton


def check_indices_on_device() -> bool:
    """VJEPA_FAST_CHECK_INDEX=1: look at indices on the GPU too, which waits for the device."""
    return os.environ.get("VJEPA_FAST_CHECK_INDEX") == "1"


def look_at_indices(index: Tensor) -> bool:
    """Whether an index's range is checked: on a CPU, unless its kernels stand in for a GPU's."""
    interpreted = os.environ.get("VJEPA_FAST_KERNELS") == "triton"
    return check_indices_on_device() or (index.device.type == "cpu" and not interpreted)
