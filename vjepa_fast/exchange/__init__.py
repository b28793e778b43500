"""Weights in and out: published files become checkpoints of ours, and runs become published forms.

Imports config, inference, models, weights, training.checkpoint.format and training.batches.
Reading single files belongs in weights, starting a run from weights in training.
"""
