"""Launches of ema_update_: see tests/helpers/compile_kernels.py."""

import torch

from vjepa_fast.kernels.ema import launch_ema_

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def update(student: torch.dtype, copy: torch.dtype | None, skip: torch.Tensor | None = None):
    def tensors(dtype: torch.dtype) -> list[torch.Tensor]:
        return [torch.empty(1280, 1280, dtype=dtype, device="meta")]

    copies = [] if copy is None else tensors(copy)
    return lambda: launch_ema_(tensors(torch.float32), tensors(student), 0.998, copies, skip)


def name(student: torch.dtype, copy: torch.dtype | None) -> str:
    return f"of {student}, copy {copy}".replace("torch.", "")


VARIANTS = {name(s, c): update(s, c) for s in DTYPES for c in (None, *DTYPES)}
VARIANTS["of float32, copy bfloat16, with skip"] = update(
    torch.float32, torch.bfloat16, torch.empty((), device="meta")
)
WIDE = dict.fromkeys(VARIANTS, "ema_kernel")
QUICK = ("of float32, copy bfloat16",)
