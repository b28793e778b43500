"""Parts of bench/decode.py: numbered videos, the decoders that are compared, CPU time and memory.

May import the package and bench/common.py.
The command line, the order of the rounds and the table are bench/decode.py.
"""
