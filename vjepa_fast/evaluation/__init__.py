"""Evaluation of frozen features: an attentive probe on a checkpoint's encoder.

Imports data, models, kernels, config, weights, inference and training.checkpoint.format; no
DeepSpeed.
The command and its table belong in commands/probe.py, measurements during training in monitoring.
"""
