"""The commands: `vjepa-fast X` is X.py with `HELP`, `add_arguments(parser)` and `run(options)`.

May import every other room, but only inside functions where the import is heavy: the command line
imports all commands. Anything that a training run or another program needs belongs in its own room.
"""
