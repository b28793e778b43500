"""Launches of masked_feature_loss: see tests/helpers/compile_kernels.py."""

import torch

from vjepa_fast.kernels.feature_loss import launch_loss, launch_scale

WIDTHS = (384, 1024, 1280, 1408)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ROWS = 44_000


def forward(
    width: int,
    dtype: torch.dtype,
    exponent: float = 1.0,
    normalize: bool = True,
    index_dtype: torch.dtype = torch.int64,
    step: int = 1,
):
    prediction = torch.empty(ROWS, width * step, dtype=dtype, device="meta")[:, ::step]
    features = torch.empty(24 * 1568, width * step, dtype=dtype, device="meta")[:, ::step]
    index = (torch.empty(n, dtype=index_dtype, device="meta") for n in (ROWS, 48, 48))
    arguments = (prediction, features, *index, exponent, normalize, None, 2.0**26)
    return lambda: launch_loss(*arguments)


def backward(dtype: torch.dtype):
    scaled = torch.empty(ROWS, 1280, dtype=dtype, device="meta")
    return lambda: launch_scale(scaled, torch.empty((), device="meta"), 2.0**-26)


def name(width: int, dtype: torch.dtype) -> str:
    return f"{width} {dtype}".replace("torch.", "")


BFLOAT16 = torch.bfloat16
BACKWARDS = {f"backward {dtype}".replace("torch.", ""): backward(dtype) for dtype in DTYPES}
FORWARDS = {
    **{name(w, d): forward(w, d) for w in WIDTHS for d in DTYPES},
    "1280 bfloat16, exponent 2": forward(1280, BFLOAT16, 2.0),
    "1280 bfloat16, exponent 1.5": forward(1280, BFLOAT16, 1.5),
    "1280 bfloat16, as they are": forward(1280, BFLOAT16, normalize=False),
    "1280 bfloat16, int32": forward(1280, BFLOAT16, index_dtype=torch.int32),
    "1408 float32, exponent 1.5": forward(1408, torch.float32, 1.5),
}
VARIANTS = {
    **FORWARDS,
    **BACKWARDS,
    "1280 bfloat16, strided": forward(1280, BFLOAT16, step=2),
    "24 float32": forward(24, torch.float32),
    "80 bfloat16": forward(80, BFLOAT16),
    "4096 float32": forward(4096, torch.float32),
}
WIDE = {**dict.fromkeys(FORWARDS, "rows_kernel"), **dict.fromkeys(BACKWARDS, "scale_kernel")}
QUICK = ("1280 bfloat16", "backward bfloat16")
