"""The predictor: a narrow ViT that predicts target features from context features."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vjepa_fast.kernels import gather_tokens, predictor_tokens
from vjepa_fast.models.activation_checkpointing import ActivationCheckpointing, run_blocks
from vjepa_fast.models.block import NORM_EPS, Block, init_weights, scale_init_by_depth
from vjepa_fast.models.positions import Positions, position_table, rotary_of
from vjepa_fast.models.sequences import PackedMasks


class Predictor(nn.Module):
    """Narrow ViT with learned mask tokens (V-JEPA, section 3.3; V-JEPA 2, section 2).

    Args:
        encoder_width: width of the encoder's features.
        width, depth, heads, mlp_ratio: size of the predictor.
        grid: tokens (T', H', W') of the longest clip.
        output_width: width of a prediction; None: as wide as the encoder's features.
        num_mask_tokens: learned mask tokens, initialized to zero: one per mask spec (V-JEPA), or
            one per clip length, shared by all specs (V-JEPA 2). The masks say which one counts.
        positions, uniform_power, depth_scaled_init, activation_checkpointing: as for the encoder.
    """

    def __init__(
        self,
        *,
        encoder_width: int,
        width: int,
        depth: int,
        heads: int,
        grid: tuple[int, int, int],
        num_mask_tokens: int,
        output_width: int | None = None,
        mlp_ratio: float = 4.0,
        positions: Positions = "sincos",
        uniform_power: bool = True,
        depth_scaled_init: bool = False,
        activation_checkpointing: ActivationCheckpointing = "none",
    ) -> None:
        super().__init__()
        self.grid = grid
        self.rotary_form = None if positions == "sincos" else positions
        self.activation_checkpointing = activation_checkpointing
        self.embed = nn.Linear(encoder_width, width)
        self.mask_tokens = nn.Parameter(torch.zeros(num_mask_tokens, width))
        if self.rotary_form is None:
            table = position_table(width, grid, uniform_power)
        else:  # nothing is added to the tokens: one row of zeros stands for all of them
            table = torch.zeros(1, width)
        self.register_buffer("positions", table, persistent=False)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.proj = nn.Linear(width, output_width or encoder_width)
        self.apply(init_weights)
        if depth_scaled_init:
            scale_init_by_depth(self.blocks)

    def forward(
        self, context: Tensor, masks: PackedMasks, grid: tuple[int, int, int] | None = None
    ) -> Tensor:
        """Predict the targets.

        Args:
            context: encoder output, [Rc, D_encoder], in the order of `masks`.
            masks: all mask specs of the micro-batch.
            grid: tokens (T', H', W') of the clips, for rotary positions; None: those it was built
                for.

        Returns:
            [Rt, output_width]; only target rows pass the final norm and projection.
        """
        rotary = rotary_of(masks.predictor_tokens, grid or self.grid, self.grid, self.rotary_form)
        num_tokens = math.prod(self.grid if rotary is None else rotary.grid)
        x = predictor_tokens(
            self.embed(context),
            self.positions.float().expand(num_tokens, -1),
            self.mask_tokens,
            masks.predictor_source,
            masks.predictor_tokens,
        )
        x = run_blocks(
            self.blocks, x, masks.predictor_layout, self.activation_checkpointing, rotary
        )
        targets = gather_tokens(x.unsqueeze(0), masks.prediction_rows.unsqueeze(0)).squeeze(0)
        return self.proj(self.norm(targets))
