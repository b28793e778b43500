"""Weights in and out: published files become checkpoints of ours, and runs become published forms.

Imports config, inference, models, weights and training.checkpoint.format.
Reading single files belongs in weights, starting a run from weights in training.
"""
