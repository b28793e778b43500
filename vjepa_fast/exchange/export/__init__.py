"""Runs in the forms that others read: a transformers folder, a published file, a safetensors file.

Imports config, evaluation, models, weights and training.checkpoint.format.
transformers is imported inside functions; modeling_vjepa.py is never imported, it is copied.
"""
