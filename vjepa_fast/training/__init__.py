"""How a model is pretrained: loop.py says when, trainer.py what a step does, build.py assembles.

May import config, models, kernels, masks, data, weights and errors; no command, no scikit-learn.
Probing belongs in evaluation/; DeepSpeed's insides in zero/, files on disk in checkpoint/.
"""
