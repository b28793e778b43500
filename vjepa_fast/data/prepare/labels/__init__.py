"""Where labels come from: the folders that hold the videos, and the annotation files of data sets.

May import: data.manifest, data.prepare.listing.names, errors. Opens no video.
What a manifest's label columns may hold belongs to `data.manifest.labels`.
"""
