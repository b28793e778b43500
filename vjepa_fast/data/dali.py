"""Decoding clips with NVIDIA DALI: VP8, VP9 and MJPEG on the CPU, NVDEC's codecs on a GPU.

The pipeline holds no random operator: frame indices, crop boxes and flips come from the plans.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import nvidia.dali.fn as fn
import nvidia.dali.types as types
import torch
from nvidia.dali import Pipeline, pipeline_def

from vjepa_fast.data.clips import ClipPlan
from vjepa_fast.data.manifest import ManifestEntry, check_unchanged
from vjepa_fast.data.pyav import decode_clip
from vjepa_fast.errors import UserError


class DaliDecoder:
    """Decodes planned clips to uint8 [B, T, S, S, 3] on `device` with `num_threads` CPU threads.

    On a CUDA device the video is decoded there by NVDEC.
    """

    name = "dali"

    def __init__(
        self,
        entries: Sequence[ManifestEntry],
        crop_size: int,
        device: torch.device,
        num_threads: int,
    ) -> None:
        self._entries = entries
        self._crop_size = crop_size
        self._device = device
        self._num_threads = num_threads
        self._pipeline: Pipeline | None = None
        self._batch_size = 0
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._readers = ThreadPoolExecutor(num_threads, thread_name_prefix="vjepa-read")

    def submit(self, plans: Sequence[ClipPlan]) -> list[Future]:
        """Start reading the files of a batch; pass what it returns to `collect`."""
        return [self._readers.submit(self._read, plan) for plan in plans]

    def collect(self, plans: Sequence[ClipPlan], files: list[Future]) -> torch.Tensor:
        """Decode a submitted batch. Raises UserError for a file that changed or is damaged.

        To be called from one thread only.
        """
        encoded = [file.result() for file in files]
        with torch.cuda.stream(self._stream):  # does nothing on a CPU
            try:
                video = self._run(plans, encoded)
            except RuntimeError:  # DALI names no file, and its pipeline is dead after that
                self._pipeline = None
                self._blame(plans, encoded)
                raise
            self._check_black(plans, video)
        if self._stream is not None:
            self._stream.synchronize()  # in a background thread, on a stream of its own
        return video

    def close(self) -> None:
        """Drop what has not started, wait for the rest, free the pipeline."""
        self._readers.shutdown(cancel_futures=True)
        self._pipeline = None

    def _read(self, plan: ClipPlan) -> np.ndarray:
        check_unchanged(self._entries[plan.video])
        return np.fromfile(plan.path, dtype=np.uint8)

    def _run(self, plans: Sequence[ClipPlan], encoded: list[np.ndarray]) -> torch.Tensor:
        if len(plans) > self._batch_size or self._pipeline is None:
            self._batch_size = max(len(plans), self._batch_size)
            self._pipeline = self._build()
        starts = np.array([plan.crop[:2] for plan in plans], dtype=np.float32)
        sizes = np.array([plan.crop[2:] for plan in plans], dtype=np.float32)
        pipeline = self._pipeline
        pipeline.feed_input("encoded", encoded)
        pipeline.feed_input("frames", [plan.frames.astype(np.int32) for plan in plans])
        pipeline.feed_input("start", starts)
        pipeline.feed_input("end", starts + sizes)
        pipeline.feed_input("flip", np.array([plan.flip for plan in plans], dtype=np.int32))
        (video,) = pipeline.run()
        # DALI reuses its buffer in the next run, hence the copy: on a CPU with numpy, since torch's
        # threads would wait here, spinning, and take the cores from the training step.
        decoded = torch.from_dlpack(video.as_tensor())
        return decoded.clone() if decoded.is_cuda else torch.from_numpy(decoded.numpy().copy())

    def _build(self) -> Pipeline:
        cuda = self._device.type == "cuda"
        pipeline = _pipeline(
            self._crop_size,
            "mixed" if cuda else "cpu",
            batch_size=self._batch_size,
            num_threads=self._num_threads,
            device_id=self._device.index if cuda else None,
            prefetch_queue_depth=1,
        )
        pipeline.build()
        return pipeline

    def _blame(self, plans: Sequence[ClipPlan], encoded: list[np.ndarray]) -> None:
        """Find the file that DALI stumbled over, one by one, and raise the error that names it."""
        for plan, data in zip(plans, encoded, strict=True):
            decode_clip(plan, self._entries[plan.video], self._crop_size)  # has the better message
            try:
                self._run([plan], [data])
            except RuntimeError as error:
                reason = " ".join(str(error).split())[:300]
                raise UserError(
                    f"found that DALI cannot decode {plan.path} though PyAV can ({reason}), "
                    'expected both to, set data.backend to "pyav"'
                ) from error

    def _check_black(self, plans: Sequence[ClipPlan], video: torch.Tensor) -> None:
        """Let PyAV decode clips with black frames: DALI shows black, silently, what isn't there."""
        few = video[:, :, ::4, ::4].cpu().numpy()  # a few pixels do for a suspicion
        for i in np.flatnonzero(~few.any(axis=(2, 3, 4)).all(axis=1)):
            video[i] = decode_clip(plans[i], self._entries[plans[i].video], self._crop_size)


@pipeline_def
def _pipeline(crop_size: int, device: str) -> "types.DataNode":
    encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
    frames = fn.external_source(name="frames", dtype=types.INT32, ndim=1)
    start = fn.external_source(name="start", dtype=types.FLOAT, ndim=1)
    end = fn.external_source(name="end", dtype=types.FLOAT, ndim=1)
    flip = fn.external_source(name="flip", dtype=types.INT32, ndim=0)
    video = fn.decoders.video(encoded, frames=frames, device=device)
    video = fn.resize(
        video,
        size=[crop_size, crop_size],
        roi_start=start,
        roi_end=end,
        roi_relative=True,
        interp_type=types.INTERP_LINEAR,
        antialias=True,
    )
    return fn.flip(video, horizontal=flip)
