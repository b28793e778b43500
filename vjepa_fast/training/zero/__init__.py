"""How ZeRO shards weights, gradients and optimizer state; the only room with DeepSpeed internals.

May import DeepSpeed, config and errors; shards.py is pure and imports neither.
What a step does belongs in trainer.py; how shards are stored in checkpoint/.
"""
