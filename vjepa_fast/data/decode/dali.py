"""Decoding clips with NVIDIA DALI: VP8, VP9 and MJPEG on the CPU, NVDEC's codecs on a GPU.

The pipeline holds no random operator: frame indices, crop boxes and flips come from the plans.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import nvidia.dali.fn as fn
import nvidia.dali.types as types
import torch
from nvidia.dali import Pipeline, pipeline_def

from vjepa_fast.data.decode.backend import unsuited_to_dali
from vjepa_fast.data.decode.cut_clip import Encoded, read_segment
from vjepa_fast.data.decode.pyav import (
    check_plan,
    collect_clips,
    decode_pixels,
    empty_batch,
    in_words,
)
from vjepa_fast.data.decode.upright import as_flips, stored_crop
from vjepa_fast.data.manifest.entry import ManifestEntry
from vjepa_fast.data.manifest.location import read_entry
from vjepa_fast.data.plan.clip_plan import ClipPlan
from vjepa_fast.data.workers.process_pool import ProcessPool
from vjepa_fast.data.workers.thread_pool import CLIP_SECONDS, ThreadPool
from vjepa_fast.errors import UserError

IN_MEMORY = 64 * 2**20  # bytes: what a clip may take there, encoded
# DALI reads a video from its first byte and, on a CPU, decodes it from its first frame. Cutting out
# a clip's part costs about as much as decoding ten frames of 320x240: it is done where a clip
# starts at this frame or later, or a file is so large that reading it costs more.
FAR_FROM_START = 32
LARGE_FILE = 4 * 2**20  # bytes
_IN_VAIN = 8  # good videos that DALI fails on before it is clear that it fails on all
_logger = logging.getLogger("vjepa_fast")


class DaliDecoder:
    """Decodes planned clips to uint8 [B, T, S, S, 3] on `device` with `num_threads` CPU threads.

    On a CUDA device the video is decoded there by NVDEC. DALI gets the part of a file that the clip
    is in, where that can be cut out (`read_segment`) and is much less, else all of it. PyAV decodes
    where that is more than `IN_MEMORY` bytes, what DALI can't decode on the device, and what it
    stumbles over, in `num_threads` processes that start when it first has to: PyAV has the last
    word on whether a clip can be decoded, whichever loader is in use. Raises UserError where DALI
    does not work at all.
    """

    name = "dali"

    def __init__(
        self,
        entries: Sequence[ManifestEntry],
        crop_size: int,
        device: torch.device,
        num_threads: int,
        seconds: float = CLIP_SECONDS,
    ) -> None:
        self._entries = entries
        self._crop_size = crop_size
        self._device = device
        self._num_threads = num_threads
        self._seconds = seconds
        self._slot = _Slot()
        self._for_pyav = unsuited_to_dali(entries, device)[0]
        self._large_named = False
        self._works = False  # it decoded something
        self._in_vain: set[int] = set()
        self._trouble = ""  # what DALI said when it last failed
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.pool = ThreadPool(num_threads, "vjepa-read", seconds)
        self._runner = ThreadPool(1, "vjepa-dali", seconds)
        modules = (decode_pixels.__module__,)
        self._pyav = ProcessPool(num_threads, "vjepa-pyav", seconds, modules)

    @property
    def handed_over(self) -> set[int]:
        """The videos that PyAV decodes, as far as is known yet."""
        return set(np.flatnonzero(self._for_pyav).tolist())

    def submit(self, plans: Sequence[ClipPlan]) -> list[Future]:
        """Start reading the files of a batch; pass what it returns to `collect`."""
        return [
            self._to_pyav(plan)
            if self._for_pyav[plan.video]
            else self.pool.submit(self._read, plan)
            for plan in plans
        ]

    def collect(
        self, plans: Sequence[ClipPlan], files: list[Future]
    ) -> tuple[torch.Tensor, dict[int, str]]:
        """Decode a submitted batch: its video, and by their places in the batch the clips that
        cannot be decoded, with the reason; their video is arbitrary.

        To be called from one thread only.
        """
        with torch.cuda.stream(self._stream):  # does nothing on a CPU
            found = self._collect(plans, files)
        if self._stream is not None:
            self._stream.synchronize()  # in a background thread, on a stream of its own
        return found

    def _collect(
        self, plans: Sequence[ClipPlan], files: list[Future]
    ) -> tuple[torch.Tensor, dict[int, str]]:
        failures, encoded, decoded, large = {}, {}, {}, []
        for i, file in enumerate(files):
            try:
                content = self.pool.result(file)  # which waits for processes, too
                if content is None:
                    large.append(i)
                else:
                    (encoded if isinstance(content, Encoded) else decoded)[i] = content
            except (UserError, OSError) as error:
                failures[i] = in_words(error, plans[i])
        places = list(encoded)
        video = self._try([plans[i] for i in places], list(encoded.values())) if places else None
        if video is None or len(places) < len(plans):
            together, video = video, empty_batch(plans, self._crop_size).to(self._device)
            for i, clip in decoded.items():
                video[i] = torch.as_tensor(clip).to(self._device)
            failures |= self._ask_pyav(plans, large, video)
            stumbled = []
            for k, i in enumerate(places):
                clip = together[k] if together is not None else self._try_one(plans[i], encoded[i])
                if clip is None:
                    stumbled.append(i)
                else:
                    video[i] = clip
            failures |= self._ask_pyav(plans, stumbled, video)
            for i in sorted(set(stumbled) - failures.keys()):
                self._check_that_it_works(plans[i])
                _logger.warning(
                    "DALI cannot decode %s, PyAV decodes it from now on (%s)",
                    plans[i].path,
                    self._trouble,
                )
        shown = sorted(encoded.keys() - failures.keys())
        return video, failures | self._ask_pyav(plans, _black(video, shown), video)

    def close(self) -> None:
        """Drop what has not started, wait for the rest, free the pipeline."""
        self.pool.close()
        self._runner.close()
        self._pyav.close()
        self._slot = _Slot()

    def _to_pyav(self, plan: ClipPlan) -> Future:
        return self._pyav.submit(decode_pixels, plan, self._entries[plan.video], self._crop_size)

    def _read(self, plan: ClipPlan) -> Encoded | None:
        """The encoded video; None where it is too large, and left to PyAV from now on."""
        entry = self._entries[plan.video]
        check_plan(plan, entry)
        if plan.frames.min() >= FAR_FROM_START or entry.size_bytes > LARGE_FILE:
            segment = read_segment(entry, plan.frames, IN_MEMORY)
            if segment is not None:
                return segment
        if entry.size_bytes > IN_MEMORY:
            self._leave_large(plan.video)
            return None
        return Encoded(read_entry(entry), plan.frames)

    def _leave_large(self, video: int) -> None:
        self._for_pyav[video] = True
        if not self._large_named:
            self._large_named = True
            _logger.warning(
                "PyAV decodes %s and others like it from now on: files of more than %d MiB, from "
                "which no smaller part can be cut out",
                self._entries[video].path,
                IN_MEMORY // 2**20,
            )

    def _try(self, plans: Sequence[ClipPlan], encoded: list[Encoded]) -> torch.Tensor | None:
        """The video, or None where DALI fails or hangs. It names no file, and its pipeline is dead
        after that. Raises UserError where it never had a pipeline.
        """
        limit = self._seconds * len(plans)
        try:
            video = self._runner.result(
                self._runner.submit(self._run, self._slot, plans, encoded, seconds=limit)
            )
            self._works = True
            return video
        except _NoPipelineError as error:
            raise _does_not_work("to build its pipeline", str(error)) from None
        except (RuntimeError, UserError) as error:
            self._trouble = " ".join(str(error).split())[:300]
            self._slot = _Slot()  # who was given up on may come back, and has the old one
            return None

    def _try_one(self, plan: ClipPlan, encoded: Encoded) -> torch.Tensor | None:
        """One clip alone, after a batch failed: None, and no second time, if it is to blame."""
        video = self._try([plan], [encoded])
        if video is None:
            self._for_pyav[plan.video] = True
            return None
        return video[0]

    def _check_that_it_works(self, plan: ClipPlan) -> None:
        """To be told of good videos that DALI failed on."""
        self._in_vain.add(plan.video)
        if not self._works and len(self._in_vain) >= _IN_VAIN:
            raise _does_not_work(f"on the first {_IN_VAIN} videos that PyAV decodes", self._trouble)

    def _run(
        self, slot: "_Slot", plans: Sequence[ClipPlan], encoded: list[Encoded]
    ) -> torch.Tensor:
        if len(plans) > slot.batch_size:
            slot.pipeline = self._build(len(plans))
            slot.batch_size = len(plans)
        rotations = [self._entries[plan.video].rotation for plan in plans]
        crops = map(stored_crop, (plan.crop for plan in plans), rotations)
        starts, sizes = np.split(np.array(list(crops), dtype=np.float32), 2, axis=1)
        flips = np.array(list(map(as_flips, rotations, (plan.flip for plan in plans))))
        pipeline = slot.pipeline
        pipeline.feed_input("encoded", [video.content for video in encoded])
        pipeline.feed_input("frames", [video.frames.astype(np.int32) for video in encoded])
        pipeline.feed_input("start", starts)
        pipeline.feed_input("end", starts + sizes)
        pipeline.feed_input("horizontal", flips[:, 0].astype(np.int32))
        pipeline.feed_input("vertical", flips[:, 1].astype(np.int32))
        with torch.cuda.stream(self._stream):  # each thread has its own current stream
            (video,) = pipeline.run()
            # DALI reuses its buffer in the next run, hence the copy: on a CPU with numpy, since
            # torch's threads would wait here, spinning, and take the cores from the training step.
            decoded = torch.from_dlpack(video.as_tensor())
            if self._stream is None:
                decoded = decoded.numpy()
            copy = decoded.copy() if self._stream is None else decoded.clone()
            for i in np.flatnonzero(flips[:, 2]).tolist():
                copy[i] = decoded[i].swapaxes(1, 2)
        if self._stream is None:
            return torch.from_numpy(copy)
        self._stream.synchronize()
        return copy

    def _build(self, batch_size: int) -> Pipeline:
        cuda = self._device.type == "cuda"
        try:
            pipeline = _pipeline(
                self._crop_size,
                "mixed" if cuda else "cpu",
                batch_size=batch_size,
                num_threads=self._num_threads,
                device_id=self._device.index if cuda else None,
                prefetch_queue_depth=1,
            )
            pipeline.build()
        except RuntimeError as error:
            if self._works:  # so it may again, with a smaller batch
                raise
            raise _NoPipelineError(str(error)) from error
        return pipeline

    def _ask_pyav(
        self, plans: Sequence[ClipPlan], places: Sequence[int], video: torch.Tensor
    ) -> dict[int, str]:
        """Have PyAV decode the clips at these places of `video`; the reasons where it can't."""
        clips = {i: self._to_pyav(plans[i]) for i in places}
        return collect_clips(self._pyav, plans, clips, video)


@dataclass
class _Slot:
    """A pipeline and the largest batch that it takes, for one thread at a time."""

    pipeline: Pipeline | None = None
    batch_size: int = 0


class _NoPipelineError(Exception):
    pass


def _does_not_work(at: str, trouble: str) -> UserError:
    return UserError(
        f"data.backend: found that DALI fails {at} ({' '.join(trouble.split())[:300]}), expected "
        'it to work with this driver, set data.backend to "pyav"'
    )


def _black(video: torch.Tensor, places: list[int]) -> list[int]:
    """The places of clips with black frames: DALI shows black, silently, what isn't there."""
    few = video[:, :, ::4, ::4].cpu().numpy()  # a few pixels do for a suspicion
    return [i for i in places if not few[i].any(axis=(1, 2, 3)).all()]


@pipeline_def
def _pipeline(crop_size: int, device: str) -> "types.DataNode":
    encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
    frames = fn.external_source(name="frames", dtype=types.INT32, ndim=1)
    start = fn.external_source(name="start", dtype=types.FLOAT, ndim=1)
    end = fn.external_source(name="end", dtype=types.FLOAT, ndim=1)
    horizontal = fn.external_source(name="horizontal", dtype=types.INT32, ndim=0)
    vertical = fn.external_source(name="vertical", dtype=types.INT32, ndim=0)
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
    return fn.flip(video, horizontal=horizontal, vertical=vertical)
