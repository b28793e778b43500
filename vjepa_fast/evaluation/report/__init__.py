"""What a probe leaves: the chosen heads, probe.json, a table, a picture, the saved probes.

Computing scores belongs in results, training and testing heads in run_heads.
"""
