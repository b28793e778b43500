"""What one training step costs: the two sides, their gate, measurements, roofline and report.

May import the package and bench/common.py, and another room of bench/ only for type checking.
The command line is bench/throughput.py; single kernels belong to kernel/, many GPUs to scale/.
"""
