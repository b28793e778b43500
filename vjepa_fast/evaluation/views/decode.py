"""Decodes the views of videos ahead of the consumer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vjepa_fast.data.bad_clips import MAX_BAD_FRACTION, LeftOut
from vjepa_fast.data.decode.backend import Backend
from vjepa_fast.data.loader import make_decoder
from vjepa_fast.data.manifest.entries import Entries
from vjepa_fast.data.plan.planner import ClipPlanner
from vjepa_fast.evaluation.views.plan import ViewPlan
from vjepa_fast.evaluation.views.source import Order
from vjepa_fast.inference.clips import decode_ahead, with_frames


@dataclass(frozen=True)
class ViewBatch:
    """Decoded views.

    Attributes:
        rows: the videos, int64 [b], on the host.
        video: uint8 [b, V, S, T, H, W, 3] on the decoder's device: S segments, each in V views.
        frames: number of each frame in its video, int64 [b, S, T], on the host.
        left_out: videos that were asked for and do not decode, and why.
    """

    rows: Tensor
    video: Tensor
    frames: Tensor
    left_out: Mapping[int, str]


class ViewDecoder:
    """Decodes the views of a manifest's videos. A video of which any clip does not decode is left
    out, with one warning.

    Args:
        entries: the videos.
        plan: their views.
        device: of the decoded video.
        backend, num_workers: see `make_decoder`.
        max_bad_fraction: largest fraction of the videos that may fail to decode in this process.

    Raises:
        UserError: clips are in seconds and a video has no frame rate.
    """

    def __init__(
        self,
        entries: Entries,
        plan: ViewPlan,
        *,
        device: torch.device | str = "cpu",
        backend: Backend = "auto",
        num_workers: int = 2,
        max_bad_fraction: float = MAX_BAD_FRACTION,
    ) -> None:
        sampling = plan.sampling
        self._planner = ClipPlanner.in_order(
            entries,
            num_frames=sampling.num_frames,
            frame_step=sampling.frame_step,
            fps=sampling.fps,
        )
        self.entries, self.plan, self.device = entries, plan, torch.device(device)
        self._backend, self._num_workers = backend, num_workers
        self._max_bad_fraction = max_bad_fraction
        self._bad: dict[int, str] = {}
        self._left_out = self.count_left_out()

    @property
    def settings(self) -> dict:
        """All that the views depend on, as JSON data."""
        return {"videos": self._planner.digest, **self.plan.settings, "backend": self._backend}

    @property
    def clip_bytes(self) -> int:
        """Bytes of a decoded clip."""
        sampling = self.plan.sampling
        return 3 * sampling.num_frames * sampling.crop_size**2

    def batches(self, order: Order) -> Iterator[ViewBatch]:
        """The views of these rows, in order, some of them decoded ahead; close it or exhaust it.

        Args:
            order: (epoch, int64 [n], n at least 1), all of which this process decodes. A batch is
                held in memory at once, and those ahead, too.

        Raises:
            UserError: too many videos that do not decode.
        """
        plan, size = self.plan, self.plan.sampling.crop_size
        shape = plan.crops, plan.segments, plan.sampling.num_frames
        decoder = make_decoder(self._planner, size, self._backend, self.device, self._num_workers)
        with closing(decoder):
            plans = (
                with_frames(plan.plans(self.entries, rows, epoch), self.entries, decoder)
                for epoch, rows in order
            )
            for clips, video, failures in decode_ahead(plans, decoder):
                rows = np.array([clip.video for clip in clips]).reshape(-1, *shape[:2])[:, 0, 0]
                left_out = self._note([(clips[i].video, why) for i, why in failures.items()])
                good = [i for i, row in enumerate(rows.tolist()) if row not in left_out]
                video = video.view(-1, *shape, size, size, 3)
                first = [clips[i * shape[0] * shape[1] + s] for i in good for s in range(shape[1])]
                frames = np.array([clip.frames for clip in first], np.int64)
                yield ViewBatch(
                    torch.from_numpy(rows[good]),
                    video if len(good) == len(video) else video[good],
                    torch.from_numpy(frames.reshape(-1, *shape[1:])),
                    left_out,
                )

    def count_left_out(self) -> LeftOut:
        """A new count of videos that do not decode; so many of this manifest's may."""
        return LeftOut(len(self.entries), self._max_bad_fraction, "data.max_bad_fraction", "videos")

    def _note(self, failures: list[tuple[int, str]]) -> dict[int, str]:
        found: dict[int, str] = {}
        for row, reason in failures:
            found.setdefault(row, reason)
            if row not in self._bad:
                self._bad[row] = reason
                self._left_out.note(self.entries[row].path, reason)
        return found
