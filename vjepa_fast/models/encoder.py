"""The encoder: a vision transformer on a subset of tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vjepa_fast.kernels import PatchEmbed
from vjepa_fast.models.activation_checkpointing import ActivationCheckpointing, run_blocks
from vjepa_fast.models.block import NORM_EPS, Block, init_weights, scale_init_by_depth
from vjepa_fast.models.positions import position_table
from vjepa_fast.models.sequences import SeqLayout


class VisionTransformer(nn.Module):
    """Pre-norm ViT over tubelets (paper, section 3.3): fixed 3-D positions, no class token.

    Args:
        width, depth, heads, mlp_ratio: size of the transformer.
        grid: tokens (T', H', W') of a clip.
        patch_size, tubelet_size: pixels and frames of a token.
        uniform_power: how channels are split among the axes, see `positions.axis_widths`.
        depth_scaled_init: divide the output projections of block l by sqrt(2 l). The released
            models were trained without it.
        activation_checkpointing: see `activation_checkpointing`.
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
        self.width = width
        self.activation_checkpointing = activation_checkpointing
        self.patch_embed = PatchEmbed(width, patch_size, tubelet_size)
        table = position_table(width, grid, uniform_power)
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

    def forward(
        self, video: Tensor, rows: Tensor | None, tokens: Tensor, layout: SeqLayout
    ) -> Tensor:
        """Encode some tokens of each clip.

        Args:
            video: uint8 [B, T, H, W, 3].
            rows: the tokens as b · N + token, [R] int64; None is all tokens of all clips.
            tokens: position of each row in the grid's raster, 0 … N - 1, [R] int64.
            layout: the sequences along rows.

        Returns:
            [R, D] after the final norm. Positions are added in fp32 and the sum is cast once, so
            the residual stream has the dtype of the weights.
        """
        x = self.patch_embed(video, rows).view(-1, self.width)
        x = (x.float() + self.positions.float()[tokens]).to(x.dtype)
        return self.norm(run_blocks(self.blocks, x, layout, self.activation_checkpointing))

    def all_tokens(self, clips: int) -> tuple[Tensor, SeqLayout]:
        """`tokens` and `layout` of whole clips, for `forward`."""
        device = self.positions.device
        tokens = torch.arange(self.num_tokens, device=device).repeat(clips)
        return tokens, SeqLayout.of([self.num_tokens] * clips, device)
