"""Which tokens are context and which are targets (numpy and torch only)."""

from vjepa_fast.masks.batch import MaskBatch
from vjepa_fast.masks.reference import ReferenceSampler
from vjepa_fast.masks.sampler import MaskSampler
from vjepa_fast.masks.specs import MultiBlock

__all__ = ["MaskBatch", "MaskSampler", "MultiBlock", "ReferenceSampler"]
