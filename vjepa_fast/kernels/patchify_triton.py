"""Triton kernel of `patchify`: one program per patch, a channel at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from vjepa_fast.kernels._dispatch import LAUNCH


@triton.jit
def byte_of(b_0, b_1, b_2, PLACE: tl.constexpr):
    """Byte 0 … 23 of three words of 8 bytes."""
    b_word = b_0 if PLACE < 8 else (b_1 if PLACE < 16 else b_2)
    return ((b_word >> (8 * (PLACE % 8))) & 255).to(tl.int32)


@triton.jit
def channel_of(b_0, b_1, b_2, C: tl.constexpr, LINES: tl.constexpr, COLUMNS: tl.constexpr):
    """Channel C of runs of 8 pixels, 24 bytes each in three words: [LINES, COLUMNS]."""
    b_04 = tl.join(byte_of(b_0, b_1, b_2, C), byte_of(b_0, b_1, b_2, C + 12))
    b_26 = tl.join(byte_of(b_0, b_1, b_2, C + 6), byte_of(b_0, b_1, b_2, C + 18))
    b_15 = tl.join(byte_of(b_0, b_1, b_2, C + 3), byte_of(b_0, b_1, b_2, C + 15))
    b_37 = tl.join(byte_of(b_0, b_1, b_2, C + 9), byte_of(b_0, b_1, b_2, C + 21))
    return tl.reshape(tl.join(tl.join(b_04, b_26), tl.join(b_15, b_37)), [LINES, COLUMNS])


@triton.jit
def patchify_kernel(
    p_video,
    p_rows,
    p_out,
    tokens,
    scale_0,
    scale_1,
    scale_2,
    shift_0,
    shift_1,
    shift_2,
    stride_clip,
    stride_frame,
    stride_line,
    stride_column,
    stride_channel,
    stride_rows,
    GRID_T: tl.constexpr,
    GRID_H: tl.constexpr,
    GRID_W: tl.constexpr,
    PATCH: tl.constexpr,
    TUBELET: tl.constexpr,
    LINES: tl.constexpr,
    COLUMNS: tl.constexpr,
    WORDS: tl.constexpr,
):
    """Program i writes patch i: three channels of TUBELET · PATCH lines of PATCH pixels.

    LINES and COLUMNS are these numbers rounded up to powers of two. Without rows patch i is token
    i. A row outside 0 … tokens - 1 is not read and gives NaN. With WORDS the colours of a pixel
    stand side by side and each thread reads its 8 pixels as three words, instead of 24 bytes.
    """
    i = tl.program_id(0).to(tl.int64)
    row = i
    if p_rows is not None:
        row = tl.load(p_rows + i * stride_rows).to(tl.int64)
    inside = (row >= 0) & (row < tokens)
    r = tl.where(inside, row, 0).to(tl.int32)  # there are fewer than 2³¹ tokens
    column, r = r % GRID_W, r // GRID_W
    line, r = r % GRID_H, r // GRID_H
    time, clip = r % GRID_T, r // GRID_T

    o_line, o_column = tl.arange(0, LINES), tl.arange(0, COLUMNS)
    o_frame = (time * TUBELET + o_line // PATCH).to(tl.int64)
    o_height = (line * PATCH + o_line % PATCH).to(tl.int64)
    p_lines = p_video + clip.to(tl.int64) * stride_clip
    p_lines += o_frame * stride_frame + o_height * stride_line
    m_line = (o_line < TUBELET * PATCH)[:, None]
    m = m_line & (o_column < PATCH)[None, :]
    p_patch = p_out + i * (3 * TUBELET * PATCH * PATCH)
    p_patch = p_patch + o_line[:, None] * PATCH + o_column[None, :]
    if WORDS:
        o_run = column * PATCH + 8 * tl.arange(0, COLUMNS // 8)
        p_runs = p_lines[:, None] + (3 * o_run)[None, :]
        p_words = p_runs.to(tl.pointer_type(tl.int64))
        b_0 = tl.load(p_words, m_line)
        b_1 = tl.load(p_words + 1, m_line)
        b_2 = tl.load(p_words + 2, m_line)
    else:
        o_width = (column * PATCH + o_column).to(tl.int64)
        p_pixels = p_lines[:, None] + (o_width * stride_column)[None, :]
    for c in tl.static_range(3):
        scale = scale_0 if c == 0 else (scale_1 if c == 1 else scale_2)
        shift = shift_0 if c == 0 else (shift_1 if c == 1 else shift_2)
        if WORDS:
            b_pixels = channel_of(b_0, b_1, b_2, c, LINES, COLUMNS)
        else:
            b_pixels = tl.load(p_pixels, m)
            p_pixels += stride_channel  # 2 · stride may be past 2³¹
        b_pixels = b_pixels.to(tl.float32) * scale + shift
        b_pixels = tl.where(inside, b_pixels, float("nan"))
        tl.store(p_patch, b_pixels.to(p_out.dtype.element_ty), m)
        p_patch += TUBELET * PATCH * PATCH


def readable_as_words(video: Tensor, patch_size: int) -> bool:
    """Whether runs of 8 pixels of [B, T, H, W, 3] are words of 8 bytes, each at its place."""
    *places, column, channel = video.stride()
    aligned = all(place % 8 == 0 for place in (*places, video.data_ptr()))
    return (column, channel) == (3, 1) and patch_size in (8, 16, 32) and aligned


def launch_patchify(
    video: Tensor,
    rows: Tensor | None,
    patch_size: int,
    tubelet_size: int,
    scale: Sequence[float],
    shift: Sequence[float],
    out: Tensor,
) -> None:
    """Fill out, [R, 3 · tubelet · patch²], from [B, T, H, W, 3] of any strides."""
    b, t, h, w, _ = video.shape
    grid = (t // tubelet_size, h // patch_size, w // patch_size)
    tokens = b * grid[0] * grid[1] * grid[2]
    if len(out) == 0 or tokens == 0:
        out.fill_(float("nan"))  # every row is outside
        return
    lines = triton.next_power_of_2(tubelet_size * patch_size)
    columns = triton.next_power_of_2(patch_size)
    with torch.cuda.device_of(video):
        patchify_kernel[(len(out),)](
            video,
            rows,
            out,
            tokens,
            *scale,
            *shift,
            *video.stride(),
            0 if rows is None else rows.stride(0),
            *grid,
            PATCH=patch_size,
            TUBELET=tubelet_size,
            LINES=lines,
            COLUMNS=columns,
            WORDS=readable_as_words(video, patch_size),
            num_warps=min(max(lines * columns // 256, 1), 8),  # 8 pixels of a channel a thread
            **LAUNCH,
        )
