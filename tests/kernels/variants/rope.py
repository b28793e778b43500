"""Launches of rotate_queries_keys: see tests/helpers/compile_kernels.py."""

import torch

from vjepa_fast.kernels.rope import launch_rope

ROWS, GRID = 40_000, (8, 16, 16)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
HEADS = {64: 16, 80: 16, 88: 16, 104: 16, 32: 12, 24: 16}  # of the models, by a head's width


def launch(
    head_dim: int,
    dtype: torch.dtype,
    form: str = "tiled",
    transposed: bool = False,
    index_dtype: torch.dtype = torch.int64,
    in_place: bool = False,
):
    qkv = torch.empty(ROWS, 3, HEADS.get(head_dim, 2), head_dim, dtype=dtype, device="meta")
    tokens = torch.empty(ROWS, dtype=index_dtype, device="meta")
    return lambda: launch_rope(qkv, tokens, GRID, form, transposed, in_place)


def named(head_dim: int, dtype: torch.dtype) -> str:
    return f"{head_dim} {str(dtype).removeprefix('torch.')}"


MODELS = {
    **{f"forward {named(d, dtype)}": launch(d, dtype) for d in HEADS for dtype in DTYPES},
    **{
        f"backward {named(d, torch.bfloat16)}": launch(d, torch.bfloat16, transposed=True)
        for d in HEADS
    },
    **{
        f"in place {named(d, torch.bfloat16)}": launch(d, torch.bfloat16, in_place=True)
        for d in HEADS
    },
    "forward 64 bfloat16, rotation": launch(64, torch.bfloat16, "rotation"),
    "backward 64 bfloat16, rotation": launch(64, torch.bfloat16, "rotation", True),
    "forward 64 bfloat16, int32": launch(64, torch.bfloat16, index_dtype=torch.int32),
}
VARIANTS = {
    **MODELS,
    "forward 33 float32": launch(33, torch.float32),
    "forward 12 float32": launch(12, torch.float32),
    "forward 24 float64": launch(24, torch.float64),
}
WIDE = dict.fromkeys(MODELS, "rope_kernel")
QUICK = ("forward 64 bfloat16", "backward 80 bfloat16")
