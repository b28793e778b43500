"""Step time on many GPUs: the analytical model, and its check against gloo processes.

May import the package and bench/common.py; model.py imports nothing but the standard library.
The command line and the tables are bench/scaling.py; measuring one step belongs to step/.
"""
