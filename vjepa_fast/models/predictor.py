"""The predictor: a narrow ViT that predicts target features from context features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vjepa_fast.kernels import gather_tokens, predictor_tokens
from vjepa_fast.models.activation_checkpointing import ActivationCheckpointing, run_blocks
from vjepa_fast.models.block import NORM_EPS, Block, init_weights, scale_init_by_depth
from vjepa_fast.models.positions import position_table
from vjepa_fast.models.sequences import PackedMasks


class Predictor(nn.Module):
    """Narrow ViT with one mask token per mask spec (paper, section 3.3).

    Args:
        encoder_width: width of the encoder's features and of the prediction.
        width, depth, heads, mlp_ratio: size of the predictor.
        grid: tokens (T', H', W') of a clip.
        num_specs: mask specs, one learned mask token each, initialized to zero.
        uniform_power, depth_scaled_init, activation_checkpointing: as for the encoder.
    """

    def __init__(
        self,
        *,
        encoder_width: int,
        width: int,
        depth: int,
        heads: int,
        grid: tuple[int, int, int],
        num_specs: int,
        mlp_ratio: float = 4.0,
        uniform_power: bool = True,
        depth_scaled_init: bool = False,
        activation_checkpointing: ActivationCheckpointing = "none",
    ) -> None:
        super().__init__()
        self.activation_checkpointing = activation_checkpointing
        self.embed = nn.Linear(encoder_width, width)
        self.mask_tokens = nn.Parameter(torch.zeros(num_specs, width))
        table = position_table(width, grid, uniform_power)
        self.register_buffer("positions", table, persistent=False)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.proj = nn.Linear(width, encoder_width)
        self.apply(init_weights)
        if depth_scaled_init:
            scale_init_by_depth(self.blocks)

    def forward(self, context: Tensor, masks: PackedMasks) -> Tensor:
        """Predict the target features.

        Args:
            context: encoder output, [Rc, D_encoder], in the order of `masks`.
            masks: all mask specs of the micro-batch.

        Returns:
            [Rt, D_encoder]; only target rows pass the final norm and projection.
        """
        x = predictor_tokens(
            self.embed(context),
            self.positions.float(),
            self.mask_tokens,
            masks.predictor_source,
            masks.predictor_tokens,
        )
        x = run_blocks(self.blocks, x, masks.predictor_layout, self.activation_checkpointing)
        targets = gather_tokens(x.unsqueeze(0), masks.prediction_rows.unsqueeze(0)).squeeze(0)
        return self.proj(self.norm(targets))
