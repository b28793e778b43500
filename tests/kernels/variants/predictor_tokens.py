"""Launches of predictor_tokens: see tests/helpers/compile_kernels.py."""

import torch

from vjepa_fast.kernels.predictor_tokens import launch_predictor_tokens, launch_sum_by_spec

ROWS, CONTEXT_ROWS, TOKENS = 40_000, 11_000, 1568
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def forward(dtype: torch.dtype, width: int = 384, specs: int = 2, index_dtype=torch.int64):
    tables = empty(CONTEXT_ROWS, width, dtype=dtype), empty(TOKENS, width)
    mask_tokens = empty(specs, width, dtype=dtype)
    indices = [empty(ROWS, dtype=index_dtype) for _ in range(2)]
    return lambda: launch_predictor_tokens(*tables, mask_tokens, *indices)


def backward(dtype: torch.dtype, width: int = 384, specs: int = 2, index_dtype=torch.int64):
    grad, source = empty(ROWS, width, dtype=dtype), empty(ROWS, dtype=index_dtype)
    return lambda: launch_sum_by_spec(grad, source, CONTEXT_ROWS, specs)


def strided():
    context = empty(CONTEXT_ROWS, 768, dtype=torch.bfloat16)[:, ::2]
    mask_tokens = empty(2, 768, dtype=torch.bfloat16)[:, ::2]
    indices = [empty(ROWS, dtype=torch.int64) for _ in range(2)]
    launch_predictor_tokens(context, empty(TOKENS, 768)[:, ::2], mask_tokens, *indices)


NAMES = {dtype: str(dtype).removeprefix("torch.") for dtype in DTYPES}
VARIANTS = {
    **{f"forward 384 {NAMES[dtype]}": forward(dtype) for dtype in DTYPES},
    **{f"backward 384 {NAMES[dtype]}": backward(dtype) for dtype in DTYPES},
    "forward 384 bfloat16, int32, 4 specs": forward(torch.bfloat16, 384, 4, torch.int32),
    "backward 384 bfloat16, int32, 4 specs": backward(torch.bfloat16, 384, 4, torch.int32),
    "forward 384 bfloat16, strided": strided,
    "forward 80 float32": forward(torch.float32, 80),
    "backward 80 float32": backward(torch.float32, 80),
}
WIDE = {f"forward 384 {name}": "predictor_tokens_kernel" for name in NAMES.values()}
QUICK = ("forward 384 bfloat16", "backward 384 bfloat16")
