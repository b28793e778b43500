"""What a run measures and shows: metrics, progress, pictures, warnings of collapse, environment.

Reads the trainer, batches, checkpoints and config; matplotlib and TensorBoard only when drawing.
When to measure is the loop's decision; commands/report.py turns the files into one HTML file.
"""
