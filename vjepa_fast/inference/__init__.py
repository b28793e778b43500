"""Features of videos from trained encoders: loading an encoder, extracting, storing, drawing.

Imports config, data, models, weights and training.checkpoint.format.
Training a classifier on features belongs in evaluation.
"""
