"""The GPU check: what it runs, one part in a process of its own, and its report.

May import the package and bench/common.py; the benchmarks run as commands, in other processes.
The command line is bench/gpu_check.py; how a benchmark measures belongs to that benchmark.
"""
