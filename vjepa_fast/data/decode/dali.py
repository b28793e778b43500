"""Decoding clips with NVIDIA DALI: VP8, VP9 and MJPEG on the CPU, NVDEC's codecs on a GPU.

The pipeline has no random operator: frame indices, crop boxes and flips come from the plans.
"""

from __future__ import annotations

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
from vjepa_fast.data.decode.color import LUMA, UNTAGGED, from_bt601
from vjepa_fast.data.decode.cut_clip import EncodedClip, cut_clip
from vjepa_fast.data.decode.pyav import decode_pixels, empty_batch, in_words
from vjepa_fast.data.decode.rotation import as_flips, stored_crop
from vjepa_fast.data.decode.time_stamps import clip_frames
from vjepa_fast.data.manifest.entry import ManifestEntry
from vjepa_fast.data.manifest.location import check_unchanged, read_entry
from vjepa_fast.data.plan.clip_plan import ClipPlan
from vjepa_fast.data.plan.frame_sampling import TimedWindow
from vjepa_fast.data.workers.process_pool import ProcessPool
from vjepa_fast.data.workers.thread_pool import CLIP_SECONDS, ThreadPool
from vjepa_fast.errors import UserError

IN_MEMORY = 64 * 2**20  # bytes of one encoded clip, at most
# DALI reads a video from its first byte and, on a CPU, decodes it from its first frame. Cutting out
# a clip's part costs about as much as decoding ten frames of 320x240, so it is done only where a
# clip starts at this frame or later, or where the file is at least so large.
FAR_FROM_START = 32
LARGE_FILE = 4 * 2**20  # bytes
_FAILED_VIDEOS = 8  # decodable videos that DALI fails on before it counts as not working at all
log = logging.getLogger("vjepa_fast")


class DaliDecoder:
    """Decodes planned clips to uint8 [B, T, S, S, 3] on `device` with `num_workers` CPU threads.

    On a CUDA device NVDEC decodes. DALI gets the part of the file that holds the clip, where
    `cut_clip` can cut it out and that pays, else the whole file. PyAV decodes, in `num_workers`
    processes that start when they are first needed: clips of more than `IN_MEMORY` bytes, codecs
    that DALI cannot decode on the device, and videos on which DALI fails. So PyAV decides whether a
    clip can be decoded, with either backend.

    Attributes:
        pool: the killable processes in which PyAV decodes and time stamps are read.

    Raises:
        UserError: DALI does not work at all.
    """

    name = "dali"

    def __init__(
        self,
        entries: Sequence[ManifestEntry],
        crop_size: int,
        device: torch.device,
        num_workers: int,
        seconds: float = CLIP_SECONDS,
    ) -> None:
        self._entries = entries
        self._crop_size = crop_size
        self._device = device
        self._num_workers = num_workers
        self._seconds = seconds
        self._slot = _Slot()
        self._for_pyav = unsuited_to_dali(entries, device)[0]
        self._large_named = False
        self._corrections: dict[int, torch.Tensor] = {}  # by matrix
        self._works = False  # DALI has decoded something
        self._failed_videos: set[int] = set()  # on which DALI failed and PyAV did not
        self._last_error = ""  # DALI's
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._readers = ThreadPool(num_workers, "vjepa-read", seconds)
        self._runner = ThreadPool(1, "vjepa-dali", seconds)
        modules = (decode_pixels.__module__,)
        self.pool = ProcessPool(num_workers, "vjepa-pyav", seconds, modules)

    @property
    def fallback(self) -> set[int]:
        """The videos that PyAV decodes, as far as known."""
        return set(np.flatnonzero(self._for_pyav).tolist())

    def submit(self, plans: Sequence[ClipPlan]) -> list[Future]:
        """Start reading the files of a batch; pass what it returns to `collect`.

        DALI needs frame indices, so this waits for the time stamps of timed clips.
        """
        timed = {
            i: self.pool.submit(clip_frames, plan, self._entries[plan.video])
            for i, plan in enumerate(plans)
            if isinstance(plan.frames, TimedWindow) and not self._for_pyav[plan.video]
        }
        files = []
        for i, plan in enumerate(plans):
            if self._for_pyav[plan.video]:
                files.append(self._to_pyav(plan))
            elif i not in timed:
                files.append(self._readers.submit(self._read, plan, plan.frames))
            elif timed[i].exception() is None:
                files.append(self._readers.submit(self._read, plan, timed[i].result()))
            else:
                files.append(timed[i])  # `collect` finds the reason in it
        return files

    def collect(
        self, plans: Sequence[ClipPlan], files: list[Future]
    ) -> tuple[torch.Tensor, dict[int, str]]:
        """Decode a submitted batch; to be called from one thread only.

        Returns:
            The video, and the reason for each clip that cannot be decoded, by its position in the
            batch; the video of those is arbitrary.
        """
        with torch.cuda.stream(self._stream):  # does nothing on a CPU
            found = self._collect(plans, files)
        if self._stream is not None:
            self._stream.synchronize()  # host sync, in a background thread, of its own stream
        return found

    def _collect(
        self, plans: Sequence[ClipPlan], files: list[Future]
    ) -> tuple[torch.Tensor, dict[int, str]]:
        clips = [_Clip(plan) for plan in plans]
        for clip, file in zip(clips, files, strict=True):
            self._receive(clip, file)
        for_dali = [clip for clip in clips if clip.encoded is not None]
        together = self._try(for_dali) if for_dali else None
        for k, clip in enumerate(for_dali):
            clip.pixels = self._try_one(clip) if together is None else together[k]
        by_dali = [i for i, clip in enumerate(clips) if clip.encoded and clip.pixels is not None]
        missing = [clip for clip in clips if clip.pixels is None and not clip.failure]
        self._ask_pyav(missing)
        for clip in missing:
            if clip.encoded is not None and not clip.failure:
                self._name_fallback(clip.plan)
        if together is not None and len(for_dali) == len(clips):
            video = together
        else:
            video = empty_batch(plans, self._crop_size).to(self._device)
            for i, clip in enumerate(clips):
                if clip.pixels is not None:
                    video[i] = clip.pixels
        black = _black(video, by_dali)
        self._ask_pyav([clips[i] for i in black])
        for i in black:
            if not clips[i].failure:
                video[i] = clips[i].pixels
        return video, {i: clip.failure for i, clip in enumerate(clips) if clip.failure}

    def close(self) -> None:
        """Drop what has not started, wait for the rest, free the pipeline."""
        self._readers.close()
        self._runner.close()
        self.pool.close()
        self._slot = _Slot()

    def _to_pyav(self, plan: ClipPlan) -> Future:
        return self.pool.submit(decode_pixels, plan, self._entries[plan.video], self._crop_size)

    def _ask_pyav(self, clips: list[_Clip]) -> None:
        """Have PyAV decode these clips, all at once."""
        for clip, future in [(clip, self._to_pyav(clip.plan)) for clip in clips]:
            self._receive(clip, future)

    def _receive(self, clip: _Clip, file: Future) -> None:
        """Wait for what a reader or a process found."""
        try:
            found = self._readers.result(file)
        except (UserError, OSError) as error:
            clip.failure = in_words(error, clip.plan)
            return
        if isinstance(found, EncodedClip):
            clip.encoded = found
        elif found is not None:
            clip.pixels = torch.as_tensor(found)

    def _read(self, plan: ClipPlan, frames: np.ndarray) -> EncodedClip | None:
        """The encoded video; None where it is too large, and left to PyAV from now on."""
        entry = self._entries[plan.video]
        check_unchanged(entry)
        if frames.min() >= FAR_FROM_START or entry.size_bytes > LARGE_FILE:
            part = cut_clip(entry, frames, IN_MEMORY)
            if part is not None:
                return part
        if entry.size_bytes > IN_MEMORY:
            self._leave_large(plan.video)
            return None
        return EncodedClip(read_entry(entry), frames)

    def _leave_large(self, video: int) -> None:
        self._for_pyav[video] = True
        if not self._large_named:
            self._large_named = True
            log.warning(
                "PyAV decodes %s and similar files from now on: files larger than %d MiB, from "
                "which no smaller part can be cut out",
                self._entries[video].path,
                IN_MEMORY // 2**20,
            )

    def _try(self, clips: list[_Clip]) -> torch.Tensor | None:
        """The video of clips that are encoded; None where DALI fails or times out.

        DALI does not say on which file it failed, and its pipeline cannot be used after that.

        Raises:
            UserError: DALI cannot build its first pipeline.
        """
        plans, encoded = [clip.plan for clip in clips], [clip.encoded for clip in clips]
        limit = self._seconds * len(clips)
        try:
            video = self._runner.result(
                self._runner.submit(self._run, self._slot, plans, encoded, seconds=limit)
            )
            self._works = True
            return video
        except _NoPipelineError as error:
            raise _does_not_work("to build its pipeline", str(error)) from None
        except (RuntimeError, UserError) as error:
            self._last_error = " ".join(str(error).split())[:300]
            self._slot = _Slot()  # a thread that timed out may still use the old one
            return None

    def _try_one(self, clip: _Clip) -> torch.Tensor | None:
        """One clip alone, after its batch failed; None leaves its video to PyAV from now on."""
        video = self._try([clip])
        if video is None:
            self._for_pyav[clip.plan.video] = True
            return None
        return video[0]

    def _name_fallback(self, plan: ClipPlan) -> None:
        """Log a video on which DALI failed and PyAV did not. Raises UserError where there are many
        of them before DALI has decoded anything.
        """
        self._failed_videos.add(plan.video)
        if not self._works and len(self._failed_videos) >= _FAILED_VIDEOS:
            where = f"on the first {_FAILED_VIDEOS} videos that PyAV decodes"
            raise _does_not_work(where, self._last_error)
        log.warning(
            "DALI cannot decode %s; PyAV decodes it from now on (%s)", plan.path, self._last_error
        )

    def _run(
        self, slot: _Slot, plans: Sequence[ClipPlan], encoded: list[EncodedClip]
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
            if self._stream is not None:  # on a CPU, PyAV decodes what would need this
                self._correct_colors(plans, copy)
        if self._stream is None:
            return torch.from_numpy(copy)
        self._stream.synchronize()
        return copy

    def _correct_colors(self, plans: Sequence[ClipPlan], video: torch.Tensor) -> None:
        """Correct, in place, the clips of other matrices than BT.601, the only one DALI knows."""
        for i, plan in enumerate(plans):
            matrix = self._entries[plan.video].matrix
            if LUMA[matrix] != LUMA[UNTAGGED]:
                if matrix not in self._corrections:
                    correction = torch.from_numpy(from_bt601(matrix)).float()
                    self._corrections[matrix] = correction.to(video.device)
                video[i] = corrected(video[i], self._corrections[matrix])

    def _build(self, batch_size: int) -> Pipeline:
        cuda = self._device.type == "cuda"
        try:
            pipeline = _pipeline(
                self._crop_size,
                "mixed" if cuda else "cpu",
                batch_size=batch_size,
                num_threads=self._num_workers,
                device_id=self._device.index if cuda else None,
                prefetch_queue_depth=1,
            )
            pipeline.build()
        except RuntimeError as error:
            if self._works:  # it may work again with a smaller batch
                raise
            raise _NoPipelineError(str(error)) from error
        return pipeline


@dataclass(eq=False)
class _Clip:
    """Where one clip of a batch stands: read (`encoded`), decoded (`pixels`) or failed.

    A clip that is none of these is left to PyAV. `pixels` are uint8 [T, S, S, 3].
    """

    plan: ClipPlan
    encoded: EncodedClip | None = None
    pixels: torch.Tensor | None = None
    failure: str = ""


@dataclass
class _Slot:
    """A pipeline and the largest batch that it takes, for one thread at a time."""

    pipeline: Pipeline | None = None
    batch_size: int = 0


class _NoPipelineError(Exception):
    pass


def corrected(video: torch.Tensor, correction: torch.Tensor) -> torch.Tensor:
    """Apply `from_bt601`, float32 [3, 3] on the same device, to uint8 [..., 3].

    Colors that BT.601's matrix put outside 0 .. 255 were clipped before and stay inexact.
    """
    return (video.float() @ correction.T).round_().clamp_(0, 255).to(torch.uint8)


def _does_not_work(where: str, error: str) -> UserError:
    return UserError(
        f"data.backend: found that DALI fails {where} ({' '.join(error.split())[:300]}), expected "
        'DALI to work with this driver; set data.backend to "pyav"'
    )


def _black(video: torch.Tensor, positions: list[int]) -> list[int]:
    """The positions of clips with black frames: DALI shows black, silently, for missing frames."""
    few = video[:, :, ::4, ::4].cpu().numpy()  # host sync; a few pixels suffice for a suspicion
    return [i for i in positions if not few[i].any(axis=(1, 2, 3)).all()]


@pipeline_def
def _pipeline(crop_size: int, device: str) -> types.DataNode:
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
