"""A plan to pixels: PyAV (any codec, killable processes) or DALI (CPU, or NVDEC on a GPU).

May import: ffmpeg, frames, manifest, plan, workers, errors.
What to show belongs to `plan`; the queue of batches and replaced clips to `data.loader`.
"""
