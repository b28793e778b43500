"""Shared by the kernels that move rows: tile sizes, and rows numbered over several masks."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vjepa_fast.kernels._dispatch import require

TILE_BYTES = 8192  # four 16-byte accesses for each of 128 threads
MAX_ROWS = 2**31 - TILE_BYTES  # int32 row numbers, and the last tile may reach past the end


def row_tile(width: int, itemsize: int) -> dict[str, int]:
    """Tile [ROWS, BLOCK_D] of a row-moving kernel.

    BLOCK_D is the widest power of two, up to 512, that pads a row least.
    """
    widest = min(512, triton.next_power_of_2(width))
    blocks = [b for b in (512, 256, 128, 64, 32, 16, 8, 4, 2, 1) if min(64, widest) <= b <= widest]
    block = min(blocks, key=lambda b: (triton.cdiv(width, b) * b, -b))
    return {"ROWS": max(1, TILE_BYTES // (block * itemsize)), "BLOCK_D": block}


def flat_rows(indices: list[Tensor], clips: int, tokens: int) -> Tensor:
    """Rows of x [clips, tokens, D] flattened to [clips * tokens, D], mask by mask.

    A token outside its clip becomes a row past the end, which PyTorch rejects, and never a row of
    another clip.
    """
    first = torch.arange(clips, device=indices[0].device).unsqueeze(1) * tokens
    rows = [
        torch.where((index >= 0) & (index < tokens), first + index, clips * tokens).flatten()
        for index in indices
    ]
    return rows[0] if len(rows) == 1 else torch.cat(rows)


def pack_indices(indices: list[Tensor]) -> tuple[tuple[Tensor, ...], tuple[int, ...], int]:
    """Arguments of `locate` for several masks.

    Returns:
        the non-empty masks, contiguous; `odd_sizes`, 2 K + 1 for a mask of K tokens a clip; and the
        number of rows over all masks.

    Triton compiles a kernel anew for integers that are 1 or divisible by 16, and inside a tuple
    that can't be disabled (`do_not_specialize` is for plain arguments). An odd number above 1 is
    neither, so a new mask length costs no compilation. Kernels read K as `odd_size >> 1`.
    """
    kept = [index.contiguous() for index in indices if index.numel()]
    total = sum(index.numel() for index in kept)
    require(total <= MAX_ROWS, f"index: found {total} rows, expected at most {MAX_ROWS}; split it")
    return tuple(kept), tuple(2 * index.shape[1] + 1 for index in kept), total


@triton.jit
def locate(o_row, indices, odd_sizes, B, MASKS: tl.constexpr):
    """For rows numbered mask by mask: mask, its length K, clip, position 0 … K - 1, token."""
    b_mask = o_row * 0
    b_size = b_mask
    b_clip = b_mask
    b_position = b_mask
    b_token = b_mask.to(tl.int64)
    start = 0
    for i in tl.static_range(MASKS):
        size = odd_sizes[i] >> 1
        o = o_row - start
        m = (o >= 0) & (o < B * size)
        clip = o // size
        token = tl.load(indices[i] + o, m, other=0).to(tl.int64)
        b_mask = tl.where(m, i, b_mask)
        b_size = tl.where(m, size, b_size)
        b_clip = tl.where(m, clip, b_clip)
        b_position = tl.where(m, o - clip * size, b_position)
        b_token = tl.where(m, token, b_token)
        start += B * size
    return b_mask, b_size, b_clip, b_position, b_token
