"""From a config to the model that it describes."""

from __future__ import annotations

import torch

from vjepa_fast.config.networks import ModelConfig
from vjepa_fast.config.schema import Config
from vjepa_fast.models.encoder import VisionTransformer
from vjepa_fast.models.jepa import VJEPA, build_vjepa


def build_model(config: Config) -> VJEPA:
    """Encoder and predictor with the config's seeded initial weights."""
    model = config.model
    return build_vjepa(
        encoder=model.encoder.model_dump(),
        predictor={
            "width": model.predictor.width,
            "depth": model.predictor.depth,
            "heads": model.predictor_heads,
        },
        grid=config.grid_of(max(config.data.lengths)),
        patch_size=model.patch_size,
        tubelet_size=model.tubelet_size,
        num_mask_tokens=config.num_mask_tokens,
        positions=model.positions,
        uniform_power=model.uniform_power,
        depth_scaled_init=model.depth_scaled_init,
        activation_checkpointing=config.activation_checkpointing,
        objective=config.objective,
        seed=config.seed,
    )


def empty_encoder(model: ModelConfig, grid: tuple[int, int, int]) -> VisionTransformer:
    """The encoder in eval mode, without memory for its weights (device "meta").

    Args:
        model: shapes of the networks.
        grid: tokens (T', H', W') of the longest clip.
    """
    with torch.device("meta"):
        encoder = VisionTransformer(
            **model.encoder.model_dump(),
            grid=grid,
            patch_size=model.patch_size,
            tubelet_size=model.tubelet_size,
            positions=model.positions,
            uniform_power=model.uniform_power,
        )
    return encoder.eval().requires_grad_(False)
