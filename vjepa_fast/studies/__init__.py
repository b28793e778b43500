"""Experiments: grids of runs, their probes, and a page of results (`vjepa-fast study`).

Imports: config, and what reads runs and metrics; runs and probes are programs of their own.
Elsewhere: one run (training/), one probe (evaluation/), the studies' files (configs/studies/).
"""
