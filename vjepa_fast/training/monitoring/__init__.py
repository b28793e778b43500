"""Monitoring of a run: metrics, progress, pictures, collapse warnings, environment.

Reads the trainer, batches, checkpoints and config; matplotlib and TensorBoard only when drawing.
The loop decides when to measure; commands/report.py makes the HTML report from these files.
"""
