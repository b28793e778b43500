"""Which tokens are context and which are targets, as a pure function of (seed, step, sample id).

Imports: numpy, torch and the compiled sampler of csrc/ only; it knows no config and no video.
Elsewhere: index tensors for the networks (models/sequences.py), the config's keys (config/).
"""

from vjepa_fast.masks.batch import MaskBatch
from vjepa_fast.masks.collator import MaskCollator
from vjepa_fast.masks.reference import ReferenceSampler
from vjepa_fast.masks.sampler import MaskSampler
from vjepa_fast.masks.specs import MaskSpec, Mixture, MultiBlock, RandomTokens, RandomTube

__all__ = [
    "MaskBatch",
    "MaskCollator",
    "MaskSampler",
    "MaskSpec",
    "Mixture",
    "MultiBlock",
    "RandomTokens",
    "RandomTube",
    "ReferenceSampler",
]
