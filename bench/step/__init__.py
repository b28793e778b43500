"""What one training step costs: both sides, their equality check, timing, roofline and report.

May import the package and bench/common.py, and other folders of bench/ only for type checking.
The command line is bench/throughput.py; single kernels belong to kernel/, many GPUs to scale/.
"""
