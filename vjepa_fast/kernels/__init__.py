"""The ops of V-JEPA that move bytes, on torch alone: drop them into any JEPA code base.

Each op lives in one file and is specified by the plain-PyTorch reference in it.
"""

from vjepa_fast.kernels.ema import ema_update_
from vjepa_fast.kernels.feature_loss import masked_feature_loss
from vjepa_fast.kernels.gather import apply_masks, gather_tokens
from vjepa_fast.kernels.patchify import PatchEmbed, patchify
from vjepa_fast.kernels.predictor_tokens import predictor_tokens

__all__ = [
    "PatchEmbed",
    "apply_masks",
    "ema_update_",
    "gather_tokens",
    "masked_feature_loss",
    "patchify",
    "predictor_tokens",
]
