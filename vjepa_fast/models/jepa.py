"""Encoder and predictor as one module whose forward returns the loss."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from vjepa_fast.kernels import masked_feature_loss, patchify
from vjepa_fast.models.activation_checkpointing import ActivationCheckpointing
from vjepa_fast.models.encoder import VisionTransformer
from vjepa_fast.models.packed_masks import PackedMasks
from vjepa_fast.models.predictor import Predictor


def encode_clips(encoder: VisionTransformer, video: Tensor) -> Tensor:
    """Features of all tokens of whole clips: uint8 [B, T, H, W, 3] → [B · N, D]."""
    patches = patchify(
        video,
        patch_size=encoder.patch_size,
        tubelet_size=encoder.tubelet_size,
        dtype=encoder.patch_embed.proj.weight.dtype,
    )
    return encoder(patches, *encoder.all_tokens(video.shape[0]))


class VJEPA(nn.Module):
    """The trained half of V-JEPA (paper, section 3.1); the target encoder lives outside."""

    def __init__(
        self, encoder: VisionTransformer, predictor: Predictor, loss_exponent: float = 1.0
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.predictor = predictor
        self.loss_exponent = loss_exponent

    def context(self, video: Tensor, masks: PackedMasks) -> Tensor:
        """Encode the context tokens of every mask in one pass: [Rc, D]."""
        encoder = self.encoder
        patches = patchify(
            video,
            masks.context_rows,
            patch_size=encoder.patch_size,
            tubelet_size=encoder.tubelet_size,
            dtype=encoder.patch_embed.proj.weight.dtype,
        )
        return encoder(patches, masks.context_tokens, masks.context_layout)

    def forward(
        self, video: Tensor, masks: PackedMasks, features: Tensor | Callable[[], Tensor]
    ) -> Tensor:
        """Loss of one micro-batch.

        Args:
            video: uint8 [B, T, H, W, 3].
            masks: all mask specs for these clips.
            features: target encoder's output for all tokens, [B · N, D], no gradient; or what
                computes it, called once the prediction is there.

        Returns:
            fp32 scalar, see `kernels.masked_feature_loss`.
        """
        prediction = self.predictor(self.context(video, masks), masks)
        return masked_feature_loss(
            prediction,
            features if isinstance(features, Tensor) else features(),
            masks.target_rows,
            masks.target_seqlens,
            masks.spec_ids,
            self.loss_exponent,
        )

    def make_target_encoder(self) -> VisionTransformer:
        """A copy of the encoder that receives no gradient."""
        teacher = copy.deepcopy(self.encoder).eval()
        return teacher.requires_grad_(False)


def build_vjepa(
    *,
    encoder: dict,
    predictor: dict,
    grid: tuple[int, int, int],
    patch_size: int,
    tubelet_size: int,
    num_specs: int,
    uniform_power: bool = True,
    depth_scaled_init: bool = False,
    loss_exponent: float = 1.0,
    activation_checkpointing: ActivationCheckpointing = "none",
    seed: int | None = 0,
) -> VJEPA:
    """Build encoder and predictor from plain numbers; the weights depend on the seed alone.

    Args:
        encoder, predictor: width, depth, heads and mlp_ratio of each.
        seed: of the initial weights; None leaves torch's generator as it is.
    """
    shared = {
        "grid": grid,
        "uniform_power": uniform_power,
        "depth_scaled_init": depth_scaled_init,
        "activation_checkpointing": activation_checkpointing,
    }
    with torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.manual_seed(seed)
        vit = VisionTransformer(
            **encoder, **shared, patch_size=patch_size, tubelet_size=tubelet_size
        )
        narrow = Predictor(encoder_width=vit.width, **predictor, **shared, num_specs=num_specs)
    return VJEPA(vit, narrow, loss_exponent)
