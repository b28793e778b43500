"""Features of videos from trained encoders: loading an encoder, extracting, storing, drawing.

Imports config, data, models, pictures, weights, training.checkpoint.format and, to share work,
training.distributed.launcher; no DeepSpeed.
Training a classifier on features belongs in evaluation.
"""
