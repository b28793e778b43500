"""How ZeRO shards weights, gradients and optimizer state; the only room with DeepSpeed internals.

May import DeepSpeed, config and errors; shards.py is pure and imports neither.
The training step belongs in trainer.py, the storage of shards in checkpoint/.
"""
