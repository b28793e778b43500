"""Preparing data before a run: indexing folders and text lists, transcoding, writing demo videos.

May import: data.ffmpeg, data.frames, data.manifest, data.decode, data.workers, errors, locks,
paths.
The commands that print the results belong to vjepa_fast/commands.
"""
