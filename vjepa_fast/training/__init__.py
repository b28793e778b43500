"""Pretraining: loop.py runs the steps, trainer.py does one step, build.py makes the trainer.

May import config, models, kernels, masks, data, weights and errors; no command, no scikit-learn.
Probing belongs in evaluation/, DeepSpeed internals in zero/, checkpoint files in checkpoint/.
"""
