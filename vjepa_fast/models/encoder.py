"""The encoder: a vision transformer on a subset of tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vjepa_fast.kernels import PatchEmbed
from vjepa_fast.models.activation_checkpointing import ActivationCheckpointing, run_blocks
from vjepa_fast.models.block import NORM_EPS, Block, init_weights, scale_init_by_depth
from vjepa_fast.models.positions import Positions, position_table, rotary_of
from vjepa_fast.models.sequences import SeqLayout


class VisionTransformer(nn.Module):
    """Pre-norm ViT over tubelets without a class token (V-JEPA, section 3.3; V-JEPA 2, section 2).

    Args:
        width, depth, heads, mlp_ratio: size of the transformer.
        grid: tokens (T', H', W') of the longest clip.
        patch_size, tubelet_size: pixels and frames of a token.
        positions: "sincos": a fixed table is added to the tokens; "rope_tiled" or "rope": queries
            and keys are rotated, see `kernels.rotate_queries_keys`.
        uniform_power: how the table's channels are split among the axes, see
            `positions.axis_widths`.
        depth_scaled_init: divide the output projections of block l by sqrt(2 l). V-JEPA was trained
            without it, V-JEPA 2 with it.
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
        positions: Positions = "sincos",
        uniform_power: bool = True,
        depth_scaled_init: bool = False,
        activation_checkpointing: ActivationCheckpointing = "none",
    ) -> None:
        super().__init__()
        self.width = width
        self.grid = grid
        self.rotary_form = None if positions == "sincos" else positions
        self.activation_checkpointing = activation_checkpointing
        self.patch_embed = PatchEmbed(width, patch_size, tubelet_size)
        if self.rotary_form is None:
            table = position_table(width, grid, uniform_power)
            self.register_buffer("positions", table, persistent=False)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.apply(init_weights)
        if depth_scaled_init:
            scale_init_by_depth(self.blocks)

    @property
    def num_tokens(self) -> int:
        """Tokens N of the longest clip."""
        frames, height, width = self.grid
        return frames * height * width

    def forward(
        self,
        video: Tensor,
        rows: Tensor | None,
        tokens: Tensor,
        layout: SeqLayout,
        drop_path: Tensor | None = None,
    ) -> Tensor:
        """Encode some tokens of each clip.

        Args:
            video: uint8 [B, T, H, W, 3]; see `grid_of` for the sizes that fit.
            rows: the tokens as b · N + token, [R] int64; None is all tokens of all clips.
            tokens: position of each row in the grid's raster, 0 … N - 1, [R] int64.
            layout: the sequences along rows.
            drop_path: stochastic depth (arXiv 1603.09382) by sequence: what each block's attention
                and MLP are multiplied by, fp32 [depth, 2, sequences], 0 or 1 / (1 - rate); None:
                nothing is dropped. `sequences.drop_path_factors` makes it of random numbers.

        Returns:
            [R, D] after the final norm. The table's positions are added in fp32 and the sum is cast
            once, so the residual stream has the dtype of the weights.

        Raises:
            ValueError: see `grid_of`.
        """
        grid = self.grid_of(video)
        x = self.patch_embed(video, rows)
        # no view, for which torch.compile would compile the first block apart from the others
        x = torch.ops.aten._unsafe_view(x, (-1, self.width))
        if self.rotary_form is None:
            x = (x.float() + self.positions.float()[tokens]).to(x.dtype)
        rotary = rotary_of(tokens, grid, self.grid, self.rotary_form)
        factors = None if drop_path is None else layout.per_row(drop_path)
        mode = self.activation_checkpointing
        return self.norm(run_blocks(self.blocks, x, layout, mode, rotary, factors))

    def grid_of(self, video: Tensor) -> tuple[int, int, int]:
        """Tokens (T', H', W') of clips.

        Rotary positions take clips of any size. A position table takes clips of its height and
        width that are no longer than its own: the first T' frames of the table are theirs.

        Args:
            video: uint8 [B, T, H, W, 3].

        Raises:
            ValueError: the position table does not fit the clips.
        """
        embed = self.patch_embed
        frames, height, width = video.shape[1:4]
        grid = (
            frames // embed.tubelet_size,
            height // embed.patch_size,
            width // embed.patch_size,
        )
        table = self.grid
        if self.rotary_form is None and (grid[1:] != table[1:] or grid[0] > table[0]):
            raise ValueError(
                f"video: found clips of {' x '.join(map(str, grid))} tokens, expected "
                f"{' x '.join(map(str, table))}, those of the position table; build the encoder "
                "with the grid of these clips"
            )
        return grid

    def all_tokens(self, video: Tensor) -> tuple[Tensor, SeqLayout]:
        """`tokens` and `layout` of whole clips, for `forward`."""
        clips, (frames, height, width) = len(video), self.grid_of(video)
        count = frames * height * width
        tokens = torch.arange(count, device=video.device).repeat(clips)
        return tokens, SeqLayout.of([count] * clips, video.device)
