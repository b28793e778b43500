"""V-JEPA: encoder and predictor as one module, the losses on its predictions, how to build it."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor, nn

from vjepa_fast.kernels import PatchEmbed, masked_feature_loss, patchify
from vjepa_fast.models.activation_checkpointing import ActivationCheckpointing
from vjepa_fast.models.cost import patch_values
from vjepa_fast.models.encoder import VisionTransformer
from vjepa_fast.models.positions import Positions
from vjepa_fast.models.predictor import Predictor
from vjepa_fast.models.sequences import PackedMasks

Objective = Literal["features", "pixels"]


def encode_clips(
    encoder: VisionTransformer, video: Tensor, drop_path: Tensor | None = None
) -> Tensor:
    """Features of all tokens of whole clips: uint8 [B, T, H, W, 3] → [B · N, D].

    `drop_path`: see `VisionTransformer.forward`; a sequence is a clip.
    """
    return encoder(video, None, *encoder.all_tokens(video), drop_path)


def feature_loss(
    prediction: Tensor, features: Tensor, masks: PackedMasks, exponent: float = 1.0
) -> Tensor:
    """Loss of one micro-batch (paper, section 3.1), see `kernels.masked_feature_loss`.

    Args:
        prediction: output of `VJEPA`, [Rt, D].
        features: target encoder's output for all tokens, [B · N, D]; receives no gradient.
        masks: all mask specs of these clips.
        exponent: p of |prediction - target|^p / p.

    Returns:
        fp32 scalar.
    """
    return masked_feature_loss(
        prediction, features, masks.target_rows, masks.target_seqlens, masks.spec_ids, exponent
    )


def pixel_loss(
    prediction: Tensor, video: Tensor, masks: PackedMasks, patches: PatchEmbed
) -> Tensor:
    """Loss of one micro-batch of the pixel baseline (paper, section 4.1): mean squared error on
    the pixels of each target patch, normalized by their own mean and standard deviation (MAE,
    arXiv 2111.06377, section 4).

    Args:
        prediction: output of `VJEPA`, [Rt, 3 · tubelet · patch²]: channel, frame, line, column.
        video: uint8 [B, T, H, W, 3].
        masks: all mask specs of these clips.
        patches: the encoder's patch embedding, for sizes and the colors' mean and std.

    Returns:
        fp32 scalar, averaged as `feature_loss`: over clips, then over mask specs.
    """
    pixels = patchify(
        video,
        masks.target_rows,
        patch_size=patches.patch_size,
        tubelet_size=patches.tubelet_size,
        mean=patches.mean,
        std=patches.std,
    )
    rows = torch.arange(len(pixels), device=pixels.device)
    # Layer norm of the targets is that normalization; the loss halves the square.
    return 2.0 * masked_feature_loss(
        prediction, pixels, rows, masks.target_seqlens, masks.spec_ids, 2.0
    )


class VJEPA(nn.Module):
    """Encoder and predictor, the trained half of V-JEPA (paper, section 3.1)."""

    def __init__(self, encoder: VisionTransformer, predictor: Predictor) -> None:
        super().__init__()
        self.encoder = encoder
        self.predictor = predictor

    def context(self, video: Tensor, masks: PackedMasks) -> Tensor:
        """Encode the context tokens of every mask in one pass: [Rc, D]."""
        return self.encoder(video, masks.context_rows, masks.context_tokens, masks.context_layout)

    def forward(self, video: Tensor, masks: PackedMasks) -> Tensor:
        """Predict the targets of one micro-batch.

        Args:
            video: uint8 [B, T, H, W, 3].
            masks: all mask specs of these clips.

        Returns:
            Predictions at the target tokens of every mask, [Rt, width of a target], in the order
            of `masks.target_rows`.
        """
        grid = self.encoder.grid_of(video)
        return self.predictor(self.context(video, masks), masks, grid)

    def make_target_encoder(self) -> VisionTransformer:
        """A copy of the encoder in eval mode, without gradients."""
        teacher = copy.deepcopy(self.encoder).eval()
        return teacher.requires_grad_(False)


def build_vjepa(
    *,
    encoder: dict,
    predictor: dict,
    grid: tuple[int, int, int],
    patch_size: int,
    tubelet_size: int,
    num_mask_tokens: int,
    positions: Positions = "sincos",
    uniform_power: bool = True,
    depth_scaled_init: bool = False,
    activation_checkpointing: ActivationCheckpointing = "none",
    objective: Objective = "features",
    seed: int | None = 0,
) -> VJEPA:
    """Build encoder and predictor from plain numbers; the weights depend on the seed alone.

    Args:
        encoder, predictor: width, depth, heads and mlp_ratio of each.
        grid: tokens (T', H', W') of the longest clip.
        patch_size, tubelet_size: pixels and frames of a token.
        num_mask_tokens: see `Predictor`.
        positions, uniform_power, depth_scaled_init, activation_checkpointing: see
            `VisionTransformer`.
        objective: what is predicted: features of the target encoder, or pixels.
        seed: seed of the initial weights; None uses torch's generator as it is.
    """
    shared = {
        "grid": grid,
        "positions": positions,
        "uniform_power": uniform_power,
        "depth_scaled_init": depth_scaled_init,
        "activation_checkpointing": activation_checkpointing,
    }
    pixels = patch_values(patch_size, tubelet_size)
    with torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.manual_seed(seed)
        vit = VisionTransformer(
            **encoder, **shared, patch_size=patch_size, tubelet_size=tubelet_size
        )
        narrow = Predictor(
            encoder_width=vit.width,
            output_width=pixels if objective == "pixels" else None,
            **predictor,
            **shared,
            num_mask_tokens=num_mask_tokens,
        )
    return VJEPA(vit, narrow)
