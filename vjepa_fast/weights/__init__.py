"""Weights under other names than ours: published files in, exported files out.

Imports torch and errors only. A run's own weights are read by training/checkpoint/format.py.
What the names stand for belongs in models.
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
