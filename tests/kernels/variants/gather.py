"""Launches of gather and scatter: see tests/helpers/compile_kernels.py."""

import torch

from vjepa_fast.kernels.gather import launch_gather
from vjepa_fast.kernels.gather_backward import launch_scatter

WIDTHS = (384, 1024, 1280, 1408)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def indices(masks: int, dtype: torch.dtype) -> list[torch.Tensor]:
    return [torch.empty(24, 300 + i, dtype=dtype, device="meta") for i in range(masks)]


def gather(width: int, dtype: torch.dtype, masks: int = 1, index_dtype=torch.int64, step: int = 1):
    x = torch.empty(24, 1568, width * step, dtype=dtype, device="meta")[..., ::step]
    return lambda: launch_gather(x, indices(masks, index_dtype))


def scatter(width: int, dtype: torch.dtype, masks: int = 1, index_dtype=torch.int64, expand=False):
    tokens = indices(masks, index_dtype)
    shape = (sum(index.numel() for index in tokens), width)
    grad = torch.empty(1, dtype=dtype, device="meta").expand(shape) if expand else None
    grad = torch.empty(shape, dtype=dtype, device="meta") if grad is None else grad
    return lambda: launch_scatter(grad, tokens, 24, 1568)


def named(width: int, dtype: torch.dtype) -> str:
    return f"{width} {str(dtype).removeprefix('torch.')}"


VARIANTS = {
    **{f"gather {named(w, d)}": gather(w, d) for w in WIDTHS for d in DTYPES},
    **{f"scatter {named(w, d)}": scatter(w, d) for w in WIDTHS for d in DTYPES},
    "gather 1280 bfloat16, 2 masks": gather(1280, torch.bfloat16, masks=2),
    "gather 1280 bfloat16, 4 masks, int32": gather(1280, torch.bfloat16, 4, torch.int32),
    "gather 1280 bfloat16, 8 masks": gather(1280, torch.bfloat16, 8),
    "gather 1280 bfloat16, strided": gather(1280, torch.bfloat16, step=2),
    "gather 24 float32": gather(24, torch.float32),
    "gather 80 float64": gather(80, torch.float64),
    "scatter 1280 bfloat16, 2 masks": scatter(1280, torch.bfloat16, masks=2),
    "scatter 1280 bfloat16, 4 masks, int32": scatter(1280, torch.bfloat16, 4, torch.int32),
    "scatter 1280 bfloat16, 8 masks": scatter(1280, torch.bfloat16, 8),
    "scatter 1280 float32, expanded": scatter(1280, torch.float32, expand=True),
    "scatter 80 float64": scatter(80, torch.float64),
}
WIDE = {
    f"{op} {name}": f"{op}_kernel"
    for op in ("gather", "scatter")
    for name in [
        *(named(w, d) for w in WIDTHS for d in DTYPES),
        "1280 bfloat16, 2 masks",
        "1280 bfloat16, 4 masks, int32",
        "1280 bfloat16, 8 masks",
    ]
}
QUICK = ("gather 1280 bfloat16", "gather 1280 bfloat16, 2 masks", "scatter 1280 bfloat16, 2 masks")
