"""Features of views, decoded and encoded each time they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from itertools import tee
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vjepa_fast.errors import UserError
from vjepa_fast.evaluation.views.decode import ViewBatch, ViewDecoder
from vjepa_fast.evaluation.views.positions import FramePositions
from vjepa_fast.evaluation.views.source import ALONE, FeatureBatch, Featurize, Order, Share

_CLIPS, _BYTES = 64, 2**26  # that are encoded at once, and decoded as one piece, at most


class StreamedFeatures:
    """A `FeatureSource` that decodes and encodes all it is asked for; nothing is kept.

    Args:
        featurize: uint8 [B, T, H, W, 3] on the decoder's device → [B, N, D].
        views: decodes.
        share: which part of each batch is this process's.
        positions: adds each tubelet's place in its video, or None.
        pool: "tokens": all tokens; "mean": their mean over the segments of a view, [b, V, 1, D].
    """

    def __init__(
        self,
        featurize: Featurize,
        views: ViewDecoder,
        share: Share = ALONE,
        positions: FramePositions | None = None,
        pool: Literal["tokens", "mean"] = "tokens",
    ) -> None:
        self._featurize, self.views = featurize, views
        self.share, self._positions, self._pool = share, positions, pool
        self._clips = max(1, min(_CLIPS, _BYTES // views.clip_bytes))
        self._shape: tuple[int, ...] | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(V, S · N, D), the shape of a video's tokens; (V, 1, D) of pooled ones."""
        if self._shape is None:
            plan = self.views.plan
            size = plan.sampling.crop_size
            clip = torch.zeros(1, plan.sampling.num_frames, size, size, 3, dtype=torch.uint8)
            tokens, width = self._run(clip).shape[1:]
            tokens *= plan.segments
            self._shape = plan.crops, tokens if self._pool == "tokens" else 1, width
        return self._shape

    @property
    def settings(self) -> dict:
        """What the features of given videos depend on besides `featurize`, as JSON data."""
        positions = None if self._positions is None else self._positions.tubelet_size
        return self.views.settings | {"pool": self._pool, "frame_positions": positions}

    def batches(self, order: Order) -> Iterator[FeatureBatch]:
        """See `FeatureSource`; tokens are fp32.

        Raises:
            UserError: too many videos that do not decode; features that are not finite.
        """
        pieces, ahead = tee(self.pieces(self._own(order)))
        views = self.views.batches((epoch, rows) for epoch, rows, _ in ahead if len(rows))
        with closing(views):
            parts: list[FeatureBatch] = []
            for _, rows, last in pieces:
                if len(rows):
                    parts.append(self.encode(next(views)))
                if last:
                    yield self._joined(parts)
                    parts = []

    def pieces(self, order: Order) -> Iterator[tuple[int, np.ndarray, bool]]:
        """Small parts of each batch, as they are decoded, and which of them are the last one."""
        plan = self.views.plan
        size = max(1, self._clips // (plan.crops * plan.segments))
        for epoch, rows in order:
            starts = range(0, max(len(rows), 1), size)
            for start in starts:
                yield epoch, rows[start : start + size], start == starts[-1]

    def _own(self, order: Order) -> Order:
        return ((epoch, self.share.part(rows)) for epoch, rows in order)

    @torch.no_grad()
    def _run(self, clips: Tensor) -> Tensor:
        """Features of clips on the device, [n, N, D], a few clips at a time."""
        parts = clips.to(self.views.device).split(self._clips)
        return torch.cat([self._featurize(part).float() for part in parts])

    def encode(self, batch: ViewBatch) -> FeatureBatch:
        """The features of decoded views. Raises UserError where they are not finite."""
        b, views, segments = batch.video.shape[:3]
        if not b:
            return FeatureBatch(batch.rows, self._none(), batch.left_out)
        clips = self._run(batch.video.flatten(0, 2))
        tokens = clips.reshape(b, views, segments * clips.shape[1], clips.shape[2])
        finite = tokens.flatten(1).isfinite().all(1)
        if not finite.all():
            row = int(batch.rows[int((~finite).int().argmax())])
            raise UserError(
                f"{self.views.entries[row].path}: found features that are NaN or infinite, "
                "expected finite ones; use another checkpoint"
            )
        if self._positions is not None:
            tokens = self._positions(tokens, batch.frames)
        if self._pool == "mean":
            tokens = tokens.mean(2, keepdim=True)
        return FeatureBatch(batch.rows, tokens, batch.left_out)

    def _joined(self, parts: list[FeatureBatch]) -> FeatureBatch:
        if len(parts) == 1:
            return parts[0]
        if not parts:
            return FeatureBatch(torch.empty(0, dtype=torch.int64), self._none())
        return FeatureBatch(
            torch.cat([part.rows for part in parts]),
            torch.cat([part.tokens for part in parts]),
            {row: why for part in parts for row, why in part.left_out.items()},
        )

    def _none(self) -> Tensor:
        return torch.empty(0, *self.shape, device=self.views.device)
