"""uint8 video to normalised patch rows, for the kept tokens only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from vjepa_fast.kernels._checks import (
    require,
    require_index,
    require_integers,
    require_same_device,
)
from vjepa_fast.kernels._dispatch import use_triton
from vjepa_fast.kernels.patchify_triton import launch_patchify

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@lru_cache
def _normalisation(
    mean: tuple[float, ...], std: tuple[float, ...], repeats: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Scale and shift of each channel, each repeated for its pixels of a patch.

    Kept on the device: to copy them there would wait for it.
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
    """The specification of `patchify`, in plain PyTorch. Pixels are gathered as uint8, whole lines
    of a patch at a time; channels change places after that, in the kept patches only."""
    b, t, h, w, c = video.shape
    grid = (t // tubelet_size, h // patch_size, w // patch_size)
    tubes = video.reshape(b, grid[0], tubelet_size, grid[1], patch_size, grid[2], patch_size, c)
    tubes = tubes.permute(0, 1, 3, 5, 2, 4, 6, 7)  # b t' h' w' | tubelet ph pw c
    picked = tubes.reshape(b * math.prod(grid), tubelet_size * patch_size**2, c)
    if rows is not None:
        picked = picked.index_select(0, rows)  # unlike [rows], refuses negative ones
    pixels = picked.transpose(1, 2).float().flatten(1)  # c tubelet ph pw: Conv3d order
    repeats = tubelet_size * patch_size**2
    scale, shift = _normalisation(tuple(mean), tuple(std), repeats, video.device)
    return torch.addcmul(shift, pixels, scale, out=pixels).to(dtype)


@torch.library.custom_op("vjepa_fast::patchify", mutates_args=())
def _patchify(
    video: Tensor,
    rows: Tensor | None,
    patch_size: int,
    tubelet_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
) -> Tensor:
    if rows is not None:
        require_index("rows", rows, _tokens(video, patch_size, tubelet_size))
    if not use_triton("patchify", video):
        return patchify_reference(video, rows, patch_size, tubelet_size, mean, std, dtype)
    out = _patches(video, rows, patch_size, tubelet_size, dtype)
    scale, shift = _normalisation(tuple(mean), tuple(std), 1, torch.device("cpu"))
    launch_patchify(video, rows, patch_size, tubelet_size, scale.tolist(), shift.tolist(), out)
    return out


def _tokens(video: Tensor, patch_size: int, tubelet_size: int) -> int:
    return video[..., 0].numel() // (tubelet_size * patch_size**2)


def _patches(
    video: Tensor, rows: Tensor | None, patch_size: int, tubelet_size: int, dtype: torch.dtype
) -> Tensor:
    """Memory for the result."""
    count = _tokens(video, patch_size, tubelet_size) if rows is None else rows.shape[0]
    width = video.shape[-1] * tubelet_size * patch_size**2
    return torch.empty(count, width, dtype=dtype, device=video.device)


@_patchify.register_fake
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
    """Normalise, cast and flatten patches; a linear layer on the result is the patch embedding.

    Args:
        video: pixels 0 … 255, uint8 [B, T, H, W, 3] or [B, 3, T, H, W], any strides. The first is
            meant where a shape could be both.
        rows: kept tokens as b * N + token, [R] int32 or int64, where N = T'H'W' and tokens are in
            raster order, time slowest; None keeps all.
        patch_size: side of a patch in pixels.
        tubelet_size: frames of a tubelet.
        mean, std: per channel, of pixels scaled to 0 … 1.
        dtype: of the result, floating; the arithmetic is fp32.

    Returns:
        [R, 3 * tubelet_size * patch_size²], values of a patch in the order of a Conv3d weight
        (channel, frame, line, column).

    Raises:
        ValueError: a video of another dtype, shape or size; other than 3 means or positive stds;
            sizes that aren't positive; a dtype that isn't floating; rows as in `gather_tokens`.
    """
    require(video.dtype == torch.uint8, f"video: found dtype {video.dtype}, expected uint8")
    require(
        video.ndim == 5 and (video.shape[-1] == 3 or video.shape[1] == 3),
        f"video: found shape {tuple(video.shape)}, expected [B, T, H, W, 3] or [B, 3, T, H, W]",
    )
    require(
        len(mean) == 3 and len(std) == 3,
        f"mean, std: found {len(mean)} and {len(std)} values, expected 3 each; give one a channel",
    )
    require(
        all(s > 0 for s in std),
        f"std: found {list(std)}, expected positive values; they divide pixels scaled to 0 … 1",
    )
    require(
        dtype in DTYPES,
        f"dtype: found {dtype}, expected float64, float32, bfloat16 or float16; patches are "
        "normalised",
    )
    require(
        patch_size > 0 and tubelet_size > 0,
        f"patch_size, tubelet_size: found {patch_size} and {tubelet_size}, expected positive "
        "numbers; give pixels and frames of a patch",
    )
    if video.shape[-1] != 3:
        video = video.permute(0, 2, 3, 4, 1)
    _, t, h, w, _ = video.shape
    require(
        t % tubelet_size == 0 and h % patch_size == 0 and w % patch_size == 0,
        f"video: found {t} frames of {h}x{w}, expected multiples of {tubelet_size} frames and "
        f"{patch_size} pixels",
    )
    if rows is not None:
        require(rows.ndim == 1, f"rows: found shape {tuple(rows.shape)}, expected [R]")
        require_integers("rows", rows)
        require_same_device("rows", rows, "video", video)
    return _patchify(video, rows, patch_size, tubelet_size, list(mean), list(std), dtype)
