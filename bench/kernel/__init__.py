"""What one op costs: its cases, the models' shapes, a timer with cold caches, and the picture.

May import vjepa_fast.kernels and bench/common.py.
The command line and the table are bench/kernels.py; whole training steps belong to step/.
"""
