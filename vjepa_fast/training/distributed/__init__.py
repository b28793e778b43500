"""How the processes of a run start, talk to each other and stop.

Also the CPU settings and the garbage collector of each process.
Imports torch.distributed, errors, locks, DeepSpeed (launch.py only); knows no model and no config.
Sharding of weights belongs in training/zero, decoding processes in data/workers.
"""
