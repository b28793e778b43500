"""What each sample id shows, a pure function of (seed, sample id): video, frames, crop, flip."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vjepa_fast.data.clips import ClipPlan
from vjepa_fast.data.manifest import ManifestEntry, read_manifest
from vjepa_fast.data.order import VideoOrder
from vjepa_fast.errors import UserError
from vjepa_fast.masks.philox import (
    STREAM_CLIP_START,
    STREAM_CROP,
    STREAM_FLIP,
    bounded,
    draw,
    uniform,
)

_CROP_TRIES = 10


@dataclass(frozen=True)
class Augment:
    """Random resized crop (fraction of the picture's area, width / height) and horizontal flip."""

    area: tuple[float, float] = (0.3, 1.0)
    aspect_ratio: tuple[float, float] = (0.75, 1.35)
    flip: bool = True


class ClipPlanner:
    """Plans clips of `num_frames` frames out of windows of num_frames * frame_step frames.

    Training: `ClipPlanner(manifests, weights, num_frames=16, frame_step=4, augment=Augment(),
    seed=0)`; for how sample ids map to videos see `VideoOrder`. The window starts anywhere, and the
    crop and the flip are drawn. With augment=None the window and the largest square are taken from
    the middle. Evaluation: `ClipPlanner.in_order(...)`, where sample id i is video i.

    `entries` are the videos of all manifests, one after another; `label_names` those that all of
    them have. Raises UserError for manifests that cannot be read and for bad weights.
    """

    def __init__(
        self,
        manifests: Sequence[str | os.PathLike],
        weights: Sequence[float] | None = None,
        *,
        num_frames: int,
        frame_step: int,
        augment: Augment | None,
        seed: int = 0,
    ) -> None:
        if not manifests:
            raise UserError("found no manifest, expected at least one, name it in data.manifests")
        pools = [read_manifest(path) for path in manifests]
        self.entries: list[ManifestEntry] = [entry for pool in pools for entry in pool]
        self.num_frames = num_frames
        self.frame_step = frame_step
        self.augment = augment
        self.seed = seed
        shared = set.intersection(*(set(pool[0].labels) for pool in pools))
        self.label_names = [name for name in self.entries[0].labels if name in shared]
        sizes = [(entry.frames, entry.height, entry.width) for entry in self.entries]
        self._sizes = np.array(sizes, dtype=np.int64)
        self._order: VideoOrder | None = VideoOrder([len(pool) for pool in pools], weights, seed)

    @classmethod
    def in_order(
        cls, manifests: Sequence[str | os.PathLike], *, num_frames: int, frame_step: int
    ) -> "ClipPlanner":
        """A planner for evaluation: sample id i in 0 .. len-1 is video i, unaugmented."""
        planner = cls(manifests, num_frames=num_frames, frame_step=frame_step, augment=None)
        planner._order = None
        return planner

    def __len__(self) -> int:
        """The number of videos."""
        return len(self.entries)

    def plan(self, sample_ids: Sequence[int]) -> list[ClipPlan]:
        """Plan one clip per sample id (each >= 0)."""
        ids = np.asarray(sample_ids, dtype=np.int64).reshape(-1)
        if ids.size and (ids.min() < 0 or (self._order is None and ids.max() >= len(self))):
            end = "" if self._order else f" and below {len(self)} (videos in order)"
            raise ValueError(f"found sample ids {ids.min()} .. {ids.max()}, expected >= 0{end}")
        return self._plan(ids, ids if self._order is None else self._order.videos(ids))

    def plan_one(self, sample_id: int, attempt: int = 0) -> ClipPlan:
        """One sample's plan; from attempt 1 on with another video, where earlier ones can't be
        decoded.

        A pure function of its arguments: attempt 0 is `plan([sample_id])[0]`, attempts 1, 2, … go
        through all the other videos of the same manifest (of all manifests, without weights) in an
        order of this sample's own. Raises UserError where there is no other video, and at attempt 1
        in an evaluation, where sample id i can only be video i.
        """
        if attempt == 0:
            return self.plan([sample_id])[0]
        if self._order is None:
            raise UserError(
                f"found {self.entries[sample_id].path} unusable in an evaluation, expected every "
                "video of its manifest to decode, index its folder again or remove its line"
            )
        ids = np.array([sample_id], dtype=np.int64)
        video = int(self._order.videos(ids)[0])
        replacement = self._order.replacement(sample_id, video, attempt)
        return self._plan(ids, np.array([replacement]))[0]

    def _plan(self, ids: np.ndarray, videos: np.ndarray) -> list[ClipPlan]:
        counts, heights, widths = self._sizes[videos].T
        window = self.num_frames * self.frame_step
        spare = np.maximum(counts - window, 0)
        if self.augment is None:
            starts = spare // 2
            crops = centre_squares(heights, widths)
        else:
            starts = bounded(self.seed, STREAM_CLIP_START, ids, spare + 1)
            crops = random_crops(self.seed, ids, heights, widths, self.augment)
        if self.augment is not None and self.augment.flip:
            flips = draw(self.seed, STREAM_FLIP, ids, 1)[:, 0] >= 2**31
        else:
            flips = np.zeros(ids.size, dtype=bool)
        frames = window_frames(counts, self.num_frames, self.frame_step, starts)
        assert ((frames >= 0) & (frames < counts[:, None])).all()  # DALI would show black
        fractions = crops / np.stack([heights, widths, heights, widths], axis=1)
        return [
            ClipPlan(
                sample_id=int(ids[i]),
                path=self.entries[video].path,
                video=int(video),
                frames=frames[i],
                crop=tuple(fractions[i].tolist()),
                flip=bool(flips[i]),
                labels={name: self.entries[video].labels[name] for name in self.label_names},
            )
            for i, video in enumerate(videos)
        ]


def window_frames(
    counts: np.ndarray, num_frames: int, frame_step: int, starts: np.ndarray
) -> np.ndarray:
    """The frame indices of windows at `starts` in videos of `counts` frames (both [n]): int64 [n,
    T].

    T = num_frames points are spread evenly over the num_frames * frame_step frames of the window,
    ends included, and truncated to integers: the published trainer's rule, hence steps of 4 and 5
    at frame_step = 4. A video shorter than the window (start 0) is shown at the same pace as far as
    it goes, then its last frame is repeated.
    """
    counts, starts = np.asarray(counts)[:, None], np.asarray(starts)
    ends = starts + num_frames * frame_step
    points = np.linspace(starts, ends, num=num_frames, axis=1)
    frames = np.minimum(points, ends[:, None] - 1).astype(np.int64)
    return np.minimum(frames, counts - 1)


def random_crops(
    seed: int, sample_ids: np.ndarray, heights: np.ndarray, widths: np.ndarray, augment: Augment
) -> np.ndarray:
    """Random resized crops in pixels: int64 [n, 4] of (top, left, height, width).

    Up to ten times a box of uniform area and log-uniform aspect ratio is drawn; the first that fits
    is placed uniformly. If none does: the largest centred box with an aspect ratio in the range.
    """
    n = len(sample_ids)
    u = uniform(draw(seed, STREAM_CROP, sample_ids, 4 * _CROP_TRIES)).reshape(n, _CROP_TRIES, 4)
    low, high = augment.area
    area = (low + (high - low) * u[..., 0]) * (heights * widths)[:, None]
    low, high = np.log(augment.aspect_ratio)
    aspect = np.exp(low + (high - low) * u[..., 1])
    width = np.rint(np.sqrt(area * aspect)).astype(np.int64)
    height = np.rint(np.sqrt(area / aspect)).astype(np.int64)
    fits = (width >= 1) & (height >= 1) & (width <= widths[:, None]) & (height <= heights[:, None])
    chosen = np.arange(n), fits.argmax(axis=1)
    width, height = width[chosen], height[chosen]
    top = np.floor(u[..., 2][chosen] * (heights - height + 1)).astype(np.int64)
    left = np.floor(u[..., 3][chosen] * (widths - width + 1)).astype(np.int64)
    crops = np.stack([top, left, height, width], axis=1)
    return np.where(
        fits.any(axis=1)[:, None], crops, _largest_centred(heights, widths, augment.aspect_ratio)
    )


def centre_squares(heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """The largest centred squares in pixels: int64 [n, 4] of (top, left, height, width)."""
    return _largest_centred(heights, widths, (1.0, 1.0))


def _largest_centred(
    heights: np.ndarray, widths: np.ndarray, aspect_ratio: tuple[float, float]
) -> np.ndarray:
    low, high = aspect_ratio
    width = np.minimum(widths, np.rint(heights * high).astype(np.int64))
    height = np.minimum(heights, np.rint(widths / low).astype(np.int64))
    width, height = np.maximum(width, 1), np.maximum(height, 1)
    return np.stack([(heights - height) // 2, (widths - width) // 2, height, width], axis=1)
