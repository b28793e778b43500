"""Videos on disk to clips on the device: manifest → plan → decode → loader.

May import: masks (its random numbers), errors. `ffmpeg` and `workers` stand below all other rooms.
What a step does with its clips belongs to training; offline work on videos to `prepare`.
"""
