"""Patchify: uint8 video to normalized patch rows, only for the kept tokens; and the embedding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor, nn

from vjepa_fast.kernels._dispatch import (
    LAUNCH,
    require,
    require_index,
    require_integers,
    require_same_device,
    use_triton,
)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@lru_cache
def _normalization(
    mean: tuple[float, ...], std: tuple[float, ...], repeats: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Scale and shift of each channel, each repeated for its pixels of a patch.

    Cached on the device, since copying them there is a host sync.
    """
    spread = torch.tensor(std)
    scale, shift = 1.0 / (255.0 * spread), -torch.tensor(mean) / spread
    return tuple(t.repeat_interleave(repeats).to(device) for t in (scale, shift))


def patchify_reference(
    video: Tensor,
    rows: Tensor | None,
    patch_size: int,
    tubelet_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
) -> Tensor:
    """The specification of `patchify`, in plain PyTorch.

    Pixels are gathered as uint8, whole lines of a patch at a time. Channels are moved after that,
    in the kept patches only.
    """
    b, t, h, w, c = video.shape
    grid = (t // tubelet_size, h // patch_size, w // patch_size)
    tubes = video.reshape(b, grid[0], tubelet_size, grid[1], patch_size, grid[2], patch_size, c)
    tubes = tubes.permute(0, 1, 3, 5, 2, 4, 6, 7)  # b t' h' w' | tubelet ph pw c
    picked = tubes.reshape(b * math.prod(grid), tubelet_size * patch_size**2, c)
    if rows is not None:
        picked = picked.index_select(0, rows)  # unlike [rows], rejects negative indices
    pixels = picked.transpose(1, 2).float().flatten(1)  # c tubelet ph pw: Conv3d order
    repeats = tubelet_size * patch_size**2
    scale, shift = _normalization(tuple(mean), tuple(std), repeats, video.device)
    return torch.addcmul(shift, pixels, scale, out=pixels).to(dtype)


@triton.jit
def byte_of(b_0, b_1, b_2, BYTE: tl.constexpr):
    """Byte 0 … 23 of three words of 8 bytes."""
    b_word = b_0 if BYTE < 8 else (b_1 if BYTE < 16 else b_2)
    return ((b_word >> (8 * (BYTE % 8))) & 255).to(tl.int32)


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

    LINES and COLUMNS are these numbers rounded up to powers of two. Without rows, patch i is token
    i. A row outside 0 … tokens - 1 is not read and becomes NaN. With WORDS the channels of a pixel
    are adjacent and each thread reads its 8 pixels as three words instead of 24 bytes.
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
    """Whether runs of 8 pixels of [B, T, H, W, 3] are aligned words of 8 bytes."""
    *outer, column, channel = video.stride()
    aligned = all(offset % 8 == 0 for offset in (*outer, video.data_ptr()))
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
        out.fill_(float("nan"))  # every row index is outside
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


@torch.library.custom_op("vjepa_fast::patchify", mutates_args=())
def patchify_op(
    video: Tensor,
    rows: Tensor | None,
    patch_size: int,
    tubelet_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
) -> Tensor:
    """See `patchify`; video [B, T, H, W, 3]."""
    if rows is not None:
        require_index("rows", rows, _tokens(video, patch_size, tubelet_size))
    if not use_triton("patchify", video):
        return patchify_reference(video, rows, patch_size, tubelet_size, mean, std, dtype)
    out = _patches(video, rows, patch_size, tubelet_size, dtype)
    scale, shift = _normalization(tuple(mean), tuple(std), 1, torch.device("cpu"))
    launch_patchify(video, rows, patch_size, tubelet_size, scale.tolist(), shift.tolist(), out)
    return out


def _tokens(video: Tensor, patch_size: int, tubelet_size: int) -> int:
    return video[..., 0].numel() // (tubelet_size * patch_size**2)


def _patches(
    video: Tensor, rows: Tensor | None, patch_size: int, tubelet_size: int, dtype: torch.dtype
) -> Tensor:
    """Uninitialized memory for the result."""
    count = _tokens(video, patch_size, tubelet_size) if rows is None else rows.shape[0]
    width = video.shape[-1] * tubelet_size * patch_size**2
    return torch.empty(count, width, dtype=dtype, device=video.device)


@patchify_op.register_fake
def _(video, rows, patch_size, tubelet_size, mean, std, dtype):
    return _patches(video, rows, patch_size, tubelet_size, dtype)


def patchify(
    video: Tensor,
    rows: Tensor | None = None,
    *,
    patch_size: int = 16,
    tubelet_size: int = 2,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Normalize, cast and flatten patches; a linear layer on the result is the patch embedding.

    Args:
        video: pixels 0 … 255, uint8 [B, T, H, W, 3] or [B, 3, T, H, W], any strides. A shape
            that fits both is taken as the first.
        rows: kept tokens as b * N + token, [R] int32 or int64, where N = T'H'W' and tokens are in
            raster order, time slowest; None keeps all.
        patch_size: side of a patch in pixels.
        tubelet_size: frames of a tubelet.
        mean, std: per channel, of pixels scaled to 0 … 1.
        dtype: dtype of the result, floating; the arithmetic is fp32.

    Returns:
        [R, 3 * tubelet_size * patch_size²], values of a patch in the order of a Conv3d weight
        (channel, frame, line, column).

    Raises:
        ValueError: wrong dtype, shape or size of video; not 3 means and 3 positive stds; sizes that
            aren't positive; a dtype that isn't floating; rows as for `gather_tokens`.
    """
    require(
        video.dtype == torch.uint8,
        f"video: found dtype {video.dtype}, expected uint8; pass decoded pixels",
    )
    require(
        video.ndim == 5 and (video.shape[-1] == 3 or video.shape[1] == 3),
        f"video: found shape {tuple(video.shape)}, expected [B, T, H, W, 3] or [B, 3, T, H, W]; "
        "add or move dimensions",
    )
    require(
        len(mean) == 3 and len(std) == 3,
        f"mean, std: found {len(mean)} and {len(std)} values, expected 3 each; one a channel",
    )
    require(
        all(s > 0 for s in std),
        f"std: found {list(std)}, expected positive values; pass those of pixels scaled to 0 … 1",
    )
    require(
        dtype in DTYPES,
        f"dtype: found {dtype}, expected float64, float32, bfloat16 or float16; patches are "
        "normalized",
    )
    require(
        patch_size > 0 and tubelet_size > 0,
        f"patch_size, tubelet_size: found {patch_size} and {tubelet_size}, expected positive "
        "numbers; pass pixels and frames of a patch",
    )
    if video.shape[-1] != 3:
        video = video.permute(0, 2, 3, 4, 1)
    _, t, h, w, _ = video.shape
    require(
        t % tubelet_size == 0 and h % patch_size == 0 and w % patch_size == 0,
        f"video: found {t} frames of {h}x{w}, expected multiples of {tubelet_size} frames and "
        f"{patch_size} pixels; crop or resize the clip",
    )
    if rows is not None:
        require(rows.ndim == 1, f"rows: found shape {tuple(rows.shape)}, expected [R]; flatten it")
        require_integers("rows", rows)
        require_same_device("rows", rows, "video", video)
    return patchify_op(video, rows, patch_size, tubelet_size, list(mean), list(std), dtype)


class PatchEmbed(nn.Module):
    """Patch embedding of the kept tokens: `patchify` and one GEMM (paper, section 3.3).

    The parameters are those of an nn.Conv3d with stride = kernel size, so a published state dict
    (proj.weight [D, 3, tubelet, patch, patch], proj.bias [D]) loads unchanged.

    Args:
        width: D of a token.
        patch_size, tubelet_size: pixels and frames of a token.
        mean, std: per channel, of pixels scaled to 0 … 1; published models use the defaults.
    """

    def __init__(
        self,
        width: int,
        patch_size: int = 16,
        tubelet_size: int = 2,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.patch_size, self.tubelet_size = patch_size, tubelet_size
        self.mean, self.std = tuple(mean), tuple(std)
        kernel = (tubelet_size, patch_size, patch_size)
        self.proj = nn.Conv3d(3, width, kernel_size=kernel, stride=kernel)

    def forward(self, video: Tensor, rows: Tensor | None = None) -> Tensor:
        """Embed tokens.

        Args:
            video: uint8 [B, T, H, W, 3] or [B, 3, T, H, W], see `patchify`.
            rows: kept tokens as b * N + token, [R]; None keeps all.

        Returns:
            [R, D], or [B, N, D] without rows; dtype of the weights or, under autocast, autocast's.

        Raises:
            ValueError: as for `patchify`.
        """
        kind, weight = video.device.type, self.proj.weight
        autocast = torch.is_autocast_enabled(kind)
        patches = patchify(
            video,
            rows,
            patch_size=self.patch_size,
            tubelet_size=self.tubelet_size,
            mean=self.mean,
            std=self.std,
            dtype=torch.get_autocast_dtype(kind) if autocast else weight.dtype,
        )
        tokens = F.linear(patches, weight.flatten(1), self.proj.bias)
        return tokens if rows is not None else tokens.unflatten(0, (video.shape[0], -1))
