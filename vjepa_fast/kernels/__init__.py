"""The memory-bound ops of V-JEPA, forward and backward, as Triton kernels and PyTorch references.

Imports: torch and triton only, so that any JEPA code base can use them.
Elsewhere: networks (models/), which token is context or target (masks/).

One op a file, read top-down: reference (the specification), kernels, launch, custom op, public
function. Names inside kernels: `p_` pointers, `b_` blocks of values, `m_` masks of loads and
stores, `o_` offsets or element numbers, `i_` loop indices and program ids. Custom ops are
registered as `vjepa_fast::<op>` and bound in Python as `<op>_op`.
"""

from vjepa_fast.kernels.ema import ema_update_
from vjepa_fast.kernels.feature_loss import masked_feature_loss
from vjepa_fast.kernels.gather import apply_masks, gather_tokens
from vjepa_fast.kernels.patchify import PatchEmbed, patchify
from vjepa_fast.kernels.predictor_tokens import predictor_tokens
from vjepa_fast.kernels.rope import rotate_queries_keys, rotate_queries_keys_

__all__ = [
    "PatchEmbed",
    "apply_masks",
    "ema_update_",
    "gather_tokens",
    "masked_feature_loss",
    "patchify",
    "predictor_tokens",
    "rotate_queries_keys",
    "rotate_queries_keys_",
]
