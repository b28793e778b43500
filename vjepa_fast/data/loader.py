"""The loader: plans micro-batches and decodes them in the background, ahead of the training."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from weakref import finalize

import torch

from vjepa_fast.data.bad_clips import MAX_BAD_FRACTION, BadClips, decode_or_replace
from vjepa_fast.data.decode.backend import AS_CONFIGURED, Backend, Decoder, choose_backend
from vjepa_fast.data.decode.pyav import PyavDecoder
from vjepa_fast.data.plan.clip_plan import ClipBatch, ClipPlan
from vjepa_fast.data.plan.planner import ClipPlanner

log = logging.getLogger("vjepa_fast")


class ClipLoader:
    """An iterator of ClipBatch, see `make_loader`; `prefetch` of them are decoded ahead.

    A batch stays valid for as long as it is referenced. The first error ends the iteration.
    `close`, leaving a `with` block, or dropping the loader stops the threads.
    """

    def __init__(
        self,
        planner: ClipPlanner,
        batches: Iterable[Sequence[int]],
        decoder: Decoder,
        prefetch: int,
        bad: BadClips,
    ) -> None:
        self.backend = decoder.name
        self._planner = planner
        self._batches = iter(batches)
        self._decoder = decoder
        self._prefetch = prefetch
        self._bad = bad
        self._pending: deque[Future] = deque()
        # Two stages, each in its thread: plan and submit batch i+1 while batch i is collected.
        self._plan = ThreadPoolExecutor(1, thread_name_prefix="vjepa-plan")
        self._collect = ThreadPoolExecutor(1, thread_name_prefix="vjepa-collect")
        self._close = finalize(self, _shut_down, self._plan, self._collect, decoder)

    def __iter__(self) -> Iterator[ClipBatch]:
        return self

    def __next__(self) -> ClipBatch:
        """The next micro-batch.

        Raises:
            UserError: a clip cannot be decoded and nothing can replace it, or there are too many
                of them; the message names the file.
        """
        try:
            self._fill()
            if not self._pending:
                raise StopIteration
            batch = self._pending.popleft().result()
            self._fill()
        except BaseException:
            self.close()
            raise
        if batch.video.is_cuda:  # made on another stream: tell the allocator which one uses it
            batch.video.record_stream(torch.cuda.current_stream(batch.video.device))
        return batch

    def __enter__(self) -> ClipLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def fallback(self) -> list[str]:
        """The videos (paths) that `backend` leaves to another decoder, as far as known."""
        return sorted(self._planner.entries[video].path for video in self._decoder.fallback)

    def close(self) -> None:
        """Stop the threads, at the latest after the current batch; may be called again."""
        self._pending.clear()
        self._batches = iter(())
        self._close()

    def _fill(self) -> None:
        while len(self._pending) < self._prefetch:
            ids = next(self._batches, None)
            if ids is None:
                return
            prepared = self._plan.submit(_prepare, self._planner, self._decoder, list(ids))
            self._pending.append(
                self._collect.submit(_finish, self._planner, self._decoder, self._bad, prepared)
            )


def make_loader(
    planner: ClipPlanner,
    batches: Iterable[Sequence[int]],
    crop_size: int,
    backend: Backend = "auto",
    device: str | torch.device = "cpu",
    num_workers: int = 2,
    prefetch: int = 2,
    bad_videos: str | os.PathLike | None = None,
    max_bad_fraction: float = MAX_BAD_FRACTION,
) -> ClipLoader:
    """Decode micro-batches to clips of crop_size x crop_size pixels, ahead of the consumer.

    A clip that cannot be decoded (its file is damaged, missing or unreadable, or it takes over two
    minutes) is replaced by the planner's next attempt, the same one with either backend, and logged
    in `bad_videos`.

    Args:
        planner: what each sample id shows.
        batches: the sample ids of each micro-batch. To resume, start later.
        crop_size: side of the clips in pixels.
        backend: "auto" takes DALI on a GPU where it can decode at least half of the videos, else
            PyAV, and logs which. With DALI, PyAV decodes the videos that DALI cannot.
        device: device of the video.
        num_workers: processes (PyAV) or threads (DALI) that decode.
        prefetch: micro-batches that are decoded ahead, at least 1.
        bad_videos: file of JSON lines, see `BadClips`.
        max_bad_fraction: the largest fraction of clips that may be replaced, see `BadClips`.

    Raises:
        UserError: "dali" can decode none of the videos. The loader raises it where DALI does not
            work at all.
    """
    decoder = make_decoder(planner, crop_size, backend, device, num_workers)
    bad = BadClips(bad_videos, max_bad_fraction)
    return ClipLoader(planner, batches, decoder, max(prefetch, 1), bad)


def make_decoder(
    planner: ClipPlanner,
    crop_size: int,
    backend: Backend = "auto",
    device: str | torch.device = "cpu",
    num_workers: int = 2,
) -> Decoder:
    """The decoder of a planner's clips, see `make_loader`; close it."""
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    name, reason = choose_backend(backend, planner.entries, device)
    surprising = backend == "dali" and reason != AS_CONFIGURED
    level = logging.WARNING if surprising else logging.INFO
    _log_once(level, f"decoding with {name} on {device}: {reason}")
    if name == "dali":
        from vjepa_fast.data.decode.dali import DaliDecoder  # optional, and slow to import

        return DaliDecoder(planner.entries, crop_size, device, num_workers)
    return PyavDecoder(planner.entries, crop_size, device, num_workers)


@cache
def _log_once(level: int, message: str) -> None:
    log.log(level, message)


def _prepare(
    planner: ClipPlanner, decoder: Decoder, ids: list[int]
) -> tuple[list[ClipPlan], list[Future]]:
    plans = planner.plan(ids)
    return plans, decoder.submit(plans)


def _finish(planner: ClipPlanner, decoder: Decoder, bad: BadClips, prepared: Future) -> ClipBatch:
    plans, video = decode_or_replace(planner, decoder, *prepared.result(), bad)
    return ClipBatch(
        video=video,
        labels={
            name: torch.tensor([plan.labels[name] for plan in plans], dtype=torch.int64)
            for name in planner.label_names
        },
        sample_ids=torch.tensor([plan.sample_id for plan in plans], dtype=torch.int64),
    )


def _shut_down(plan: ThreadPoolExecutor, collect: ThreadPoolExecutor, decoder: Decoder) -> None:
    plan.shutdown(wait=False, cancel_futures=True)
    collect.shutdown(wait=False, cancel_futures=True)
    decoder.close()
    plan.shutdown()
    collect.shutdown()
