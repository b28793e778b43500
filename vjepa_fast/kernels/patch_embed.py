"""The patch embedding of kept tokens: one GEMM with a published Conv3d weight."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vjepa_fast.kernels.patchify import IMAGENET_MEAN, IMAGENET_STD, patchify


class PatchEmbed(nn.Module):
    """uint8 video to tokens, only those that are kept (paper, section 3.3).

    Its parameters are those of an nn.Conv3d of equal kernel and stride, so a published state dict
    (proj.weight [D, 3, tubelet, patch, patch], proj.bias [D]) loads unchanged.

    Args:
        width: D of a token.
        patch_size, tubelet_size: pixels and frames of a token.
        mean, std: per channel, of pixels scaled to 0 … 1; published models use the default.
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
            ValueError: as `patchify`.
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
