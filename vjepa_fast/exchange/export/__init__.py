"""Runs in the forms that others read: a transformers folder, a published file, a safetensors file.

Imports config, evaluation, models, weights, training.checkpoint.format and training.batches.
What only transformers needs belongs in hf; reading such forms belongs in weights and exchange.
"""
