"""Full fine-tuning: an encoder from any checkpoint, a classifier, and a test on several views.

Imports training (the step, the loop, checkpoints), inference, evaluation, data, models, config.
What pretraining needs as well belongs in training/; the command is commands/evaluation/finetune.py.
"""
