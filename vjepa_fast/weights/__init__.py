"""Conversion between our weight names and those of the published checkpoints, both ways.

Imports torch and errors only. training/checkpoint/format.py reads a run's own weights.
The modules with these weights belong in models.
"""

from vjepa_fast.weights.published import (
    encoder_from_published,
    encoder_to_published,
    load_exactly,
    predictor_from_published,
    predictor_to_published,
    probe_from_published,
)

__all__ = [
    "encoder_from_published",
    "encoder_to_published",
    "load_exactly",
    "predictor_from_published",
    "predictor_to_published",
    "probe_from_published",
]
