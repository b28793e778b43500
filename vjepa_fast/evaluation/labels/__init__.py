"""What probes learn: the label columns of manifests, and which videos carry labels.

Imports data.manifest, masks (random numbers) and errors; training heads belongs in heads.
"""
