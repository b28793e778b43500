"""The encoder: a vision transformer that is only ever given the tokens it shall see."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vjepa_fast.models.activation_checkpointing import ActivationCheckpointing, run_blocks
from vjepa_fast.models.block import NORM_EPS, Block, init_weights, scale_init_by_depth
from vjepa_fast.models.positions import position_table
from vjepa_fast.models.sequences import SeqLayout


class PatchEmbed(nn.Module):
    """Patch rows to tokens: one GEMM with the weight of a Conv3d of equal kernel and stride."""

    def __init__(self, width: int, patch_size: int, tubelet_size: int) -> None:
        super().__init__()
        kernel = (tubelet_size, patch_size, patch_size)
        self.proj = nn.Conv3d(3, width, kernel_size=kernel, stride=kernel)

    def forward(self, patches: Tensor) -> Tensor:
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class VisionTransformer(nn.Module):
    """Pre-norm ViT over tubelets (paper, section 3.3): fixed 3-D positions, no class token.

    Args:
        width, depth, heads, mlp_ratio: of the transformer.
        grid: tokens (T', H', W') of a clip.
        patch_size, tubelet_size: pixels and frames of a token.
        uniform_power: flavour of the positions, see `positions.axis_widths`.
        depth_scaled_init: divide the output projections of block l by sqrt(2 l). The released
            models were trained without.
        activation_checkpointing: what waits for the backward pass, see `recompute`.
    """

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        heads: int,
        grid: tuple[int, int, int],
        patch_size: int,
        tubelet_size: int,
        mlp_ratio: float = 4.0,
        uniform_power: bool = True,
        depth_scaled_init: bool = False,
        activation_checkpointing: ActivationCheckpointing = "none",
    ) -> None:
        super().__init__()
        self.width, self.grid = width, tuple(grid)
        self.patch_size, self.tubelet_size = patch_size, tubelet_size
        self.activation_checkpointing = activation_checkpointing
        self.patch_embed = PatchEmbed(width, patch_size, tubelet_size)
        table = position_table(width, self.grid, uniform_power)
        self.register_buffer("positions", table, persistent=False)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.apply(init_weights)
        if depth_scaled_init:
            scale_init_by_depth(self.blocks)

    @property
    def num_tokens(self) -> int:
        """Tokens N of a clip."""
        return self.positions.shape[0]

    def forward(self, patches: Tensor, tokens: Tensor, layout: SeqLayout) -> Tensor:
        """Encode the given tokens.

        Args:
            patches: rows of `kernels.patchify`, [rows, 3 · tubelet · patch²], dtype of the weights.
            tokens: place of each row in the grid's raster, [rows] int64.
            layout: the sequences along rows.

        Returns:
            [rows, D] after the final norm. Positions are added in fp32 and the sum cast once, so
            the residual stream has the dtype of the weights.
        """
        x = self.patch_embed(patches)
        x = (x.float() + self.positions.float()[tokens]).to(x.dtype)
        return self.norm(run_blocks(self.blocks, x, layout, self.activation_checkpointing))

    def all_tokens(self, clips: int) -> tuple[Tensor, SeqLayout]:
        """Tokens and layout of whole clips, for `forward`."""
        device = self.positions.device
        tokens = torch.arange(self.num_tokens, device=device).repeat(clips)
        return tokens, SeqLayout.of([self.num_tokens] * clips, device)
