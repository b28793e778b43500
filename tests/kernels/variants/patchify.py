"""Launches of patchify: see tests/helpers/compile_kernels.py."""

import torch

from vjepa_fast.kernels.patchify import launch_patchify

SCALE, SHIFT = [0.0171, 0.0175, 0.0174], [-2.118, -2.036, -1.804]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def launch(
    layout: str,
    dtype: torch.dtype,
    patch: int = 16,
    tubelet: int = 2,
    index_dtype: torch.dtype | None = torch.int64,
):
    side = 224 // patch * patch
    shape = {"last": (24, 16, side, side, 3), "first": (24, 3, 16, side, side)}[layout]
    video = torch.empty(shape, dtype=torch.uint8, device="meta")
    video = video if layout == "last" else video.permute(0, 2, 3, 4, 1)
    tokens = 24 * (16 // tubelet) * (side // patch) ** 2
    rows = index_dtype and torch.empty(9000, dtype=index_dtype, device="meta")
    count = tokens if rows is None else len(rows)
    out = torch.empty(count, 3 * tubelet * patch**2, dtype=dtype, device="meta")
    return lambda: launch_patchify(video, rows, patch, tubelet, SCALE, SHIFT, out)


def name(layout: str, dtype: torch.dtype) -> str:
    return f"channels {layout}, {dtype}".replace("torch.", "")


BFLOAT16 = torch.bfloat16
VARIANTS = {
    **{name(layout, d): launch(layout, d) for layout in ("last", "first") for d in DTYPES},
    "channels last, bfloat16, all": launch("last", BFLOAT16, index_dtype=None),
    "channels first, bfloat16, all": launch("first", BFLOAT16, index_dtype=None),
    "channels last, bfloat16, int32": launch("last", BFLOAT16, index_dtype=torch.int32),
    "channels last, bfloat16, of 8": launch("last", BFLOAT16, 8),
    "channels last, bfloat16, of 14": launch("last", BFLOAT16, 14),
    "channels last, bfloat16, of 32": launch("last", BFLOAT16, 32),
    "channels last, bfloat16, of 1 frame": launch("last", BFLOAT16, 16, 1),
}
# Stores are 16 bytes wide; loads are 8, since pixels are bytes and a thread has 8 of a channel:
# test_kernels_patchify.py looks at those.
WIDE = {}
QUICK = (name("last", BFLOAT16), name("first", BFLOAT16))
