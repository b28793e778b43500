"""Weight files of others, read safely, and their names in ours and back.

Imports errors and models. training/checkpoint/format.py reads a run's own weights.
What becomes of the weights belongs in exchange and inference.
"""

from vjepa_fast.weights.checksum import weights_checksum
from vjepa_fast.weights.probe_names import probe_from_published, probe_to_transformers
from vjepa_fast.weights.published import (
    encoder_from_published,
    encoder_to_published,
    load_exactly,
    predictor_from_published,
    predictor_to_published,
)

__all__ = [
    "encoder_from_published",
    "encoder_to_published",
    "load_exactly",
    "predictor_from_published",
    "predictor_to_published",
    "probe_from_published",
    "probe_to_transformers",
    "weights_checksum",
]
