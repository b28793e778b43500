"""Which tokens are context and which are targets (numpy and torch only)."""

from vjepa_fast.masks.batch import MaskBatch, MaskBuffers
from vjepa_fast.masks.collator import MaskCollator
from vjepa_fast.masks.reference import ReferenceSampler
from vjepa_fast.masks.sampler import MaskSampler
from vjepa_fast.masks.specs import MultiBlock
from vjepa_fast.masks.strategies import MaskSpec, Mixture, RandomTokens, RandomTube

__all__ = [
    "MaskBatch",
    "MaskBuffers",
    "MaskCollator",
    "MaskSampler",
    "MaskSpec",
    "Mixture",
    "MultiBlock",
    "RandomTokens",
    "RandomTube",
    "ReferenceSampler",
]
