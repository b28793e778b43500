"""What each sample id shows, a pure function of (seed, sample id): video, frames, crop, flip."""

import logging
import os
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property, partial
from hashlib import sha256

import numpy as np

from vjepa_fast.data.manifest.entry import Entries, ManifestEntry
from vjepa_fast.data.manifest.files import check_unchanged, read_manifest
from vjepa_fast.data.manifest.location import entry_url
from vjepa_fast.data.plan.clip_plan import ClipPlan
from vjepa_fast.data.plan.video_order import VideoOrder
from vjepa_fast.data.plan.windows import ShortVideos, Windows
from vjepa_fast.data.workers.thread_pool import WorkerPool
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
_TIMES_KEPT = 256  # videos: an hour of frames is a megabyte
_logger = logging.getLogger("vjepa_fast")


@dataclass(frozen=True)
class Augment:
    """Random resized crop (fraction of the picture's area, width / height) and horizontal flip."""

    area: tuple[float, float] = (0.3, 1.0)
    aspect_ratio: tuple[float, float] = (0.75, 1.35)
    flip: bool = True


class ClipPlanner:
    """Plans clips of `num_frames` frames out of windows of num_frames * frame_step frames, or of
    num_frames / fps seconds; for the windows, `fps`, `short_videos` and several clips see
    `Windows`.

    Training: `ClipPlanner(manifests, weights, num_frames=16, frame_step=4, augment=Augment(),
    seed=0)`; for how sample ids map to videos see `VideoOrder`. The window starts anywhere, and the
    crop and the flip are drawn. With augment=None the window and the largest square are taken from
    the middle. Evaluation: `ClipPlanner.in_order(...)`, where sample id i is video i.

    With `clips_per_video` = n, each n sample ids from a multiple of n on show n clips of one video.

    `entries` are the videos of all manifests, one after another, less those that `short_videos`
    refuses; `label_names` those that all of them have. Raises UserError for manifests that cannot
    be read, for bad weights, and where all videos of a manifest are refused.
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
        fps: float | None = None,
        clips_per_video: int = 1,
        short_videos: ShortVideos = "repeat_last",
    ) -> None:
        if not manifests:
            raise UserError("found no manifest, expected at least one, name it in data.manifests")
        self.windows = Windows(num_frames, frame_step, fps, short_videos, clips_per_video)
        pools = [_without_short(path, read_manifest(path), self.windows) for path in manifests]
        self.entries = Entries.joined(pools)
        self.augment = augment
        self.seed = seed
        self.label_names = self.entries.label_names
        self.num_frames = num_frames
        self._times: dict[int, np.ndarray | None] = {}  # of the last videos; failures are not kept
        self._order: VideoOrder | None = VideoOrder([len(pool) for pool in pools], weights, seed)
        self._threads: WorkerPool | None = None

    @classmethod
    def in_order(
        cls,
        manifests: Sequence[str | os.PathLike],
        *,
        num_frames: int,
        frame_step: int,
        fps: float | None = None,
    ) -> "ClipPlanner":
        """A planner for evaluation: sample id i in 0 .. len-1 is video i, unaugmented."""
        planner = cls(
            manifests, num_frames=num_frames, frame_step=frame_step, augment=None, fps=fps
        )
        planner._order = None
        return planner

    def watched_by(self, threads: WorkerPool) -> "ClipPlanner":
        """The same planner, which reads files, where it has to, by these: one that hangs
        costs its own clips only.
        """
        planner = copy(self)
        planner._threads = threads
        return planner

    def __len__(self) -> int:
        """The number of videos."""
        return len(self.entries)

    @cached_property
    def digest(self) -> str:
        """A hash (hex) of the videos in their order: file names, frames, sizes in bytes. A data set
        that was moved as a whole keeps it."""
        digest = sha256()
        names = self.entries.file_names()
        frames, sizes = map(self.entries.column, ("frames", "size_bytes"))
        for name, count, size in zip(names, frames, sizes, strict=True):
            digest.update(b"%b\0%d\0%d\n" % (name, count, size))
        return digest.hexdigest()

    def plan(self, sample_ids: Sequence[int]) -> list[ClipPlan]:
        """Plan one clip per sample id (each >= 0).

        With `fps`, this reads the time stamps of videos whose rate is, or may be, variable. Where
        they can't be had, the plan says so in `obstacle`: no decoder takes it.
        """
        ids = np.asarray(sample_ids, dtype=np.int64).reshape(-1)
        if ids.size and (ids.min() < 0 or (self._order is None and ids.max() >= len(self))):
            end = "" if self._order else f" and below {len(self)} (videos in order)"
            raise ValueError(f"found sample ids {ids.min()} .. {ids.max()}, expected >= 0{end}")
        visits = ids // self.windows.clips
        return self._plan(ids, ids if self._order is None else self._order.videos(visits))

    def plan_one(self, sample_id: int, attempt: int = 0) -> ClipPlan:
        """One sample's plan; from attempt 1 on with another video, where earlier ones can't be
        decoded.

        A pure function of its arguments: attempt 0 is `plan([sample_id])[0]`, attempts 1, 2, … go
        through all the other videos of the same manifest (of all manifests, without weights) in an
        order of this sample's own. Raises UserError where no other video is left: in an
        evaluation at once, since there sample id i can only be video i.
        """
        if attempt == 0:
            return self.plan([sample_id])[0]
        if self._order is None:
            raise UserError(
                f"found {self.entries[sample_id].path} unusable in an evaluation, expected every "
                "video of its manifest to decode, index its folder again or remove its line"
            )
        visit = sample_id // self.windows.clips
        video = int(self._order.videos(np.array([visit]))[0])
        replacement = self._order.replacement(visit, video, attempt)
        return self._plan(np.array([sample_id]), np.array([replacement]))[0]

    def _plan(self, ids: np.ndarray, videos: np.ndarray) -> list[ClipPlan]:
        counts, heights, widths = (
            self.entries.column(name)[videos].astype(np.int64)
            for name in ("frames", "height", "width")
        )
        if self.augment is None:
            crops = centre_squares(heights, widths)
        else:
            crops = random_crops(self.seed, ids, heights, widths, self.augment)
        if self.augment is not None and self.augment.flip:
            flips = draw(self.seed, STREAM_FLIP, ids, 1)[:, 0] >= 2**31
        else:
            flips = np.zeros(ids.size, dtype=bool)
        times, obstacles = self._read_times(videos)
        frames = self._frames(ids, videos, counts, times)
        assert ((frames >= 0) & (frames < counts[:, None])).all()  # DALI would show black
        fractions = crops / np.stack([heights, widths, heights, widths], axis=1)
        entries = [self.entries[video] for video in videos]
        return [
            ClipPlan(
                sample_id=int(ids[i]),
                path=entries[i].path,
                video=int(video),
                frames=frames[i],
                crop=tuple(fractions[i].tolist()),
                flip=bool(flips[i]),
                labels={name: entries[i].labels[name] for name in self.label_names},
                obstacle=obstacles.get(int(video)),
            )
            for i, video in enumerate(videos)
        ]

    def _frames(
        self,
        ids: np.ndarray,
        videos: np.ndarray,
        counts: np.ndarray,
        times: dict[int, np.ndarray | None],
    ) -> np.ndarray:
        windows, middle = self.windows, self.augment is None
        parts = ids % windows.clips
        if windows.fps is None:
            draw_start = partial(bounded, self.seed, STREAM_CLIP_START, ids)
            return windows.by_frames(counts, parts, None if middle else draw_start)
        places = uniform(draw(self.seed, STREAM_CLIP_START, ids, 1)[:, 0])
        frames = np.empty((ids.size, windows.num_frames), dtype=np.int64)
        for i, video in enumerate(videos.tolist()):
            place = 0.5 if middle else float(places[i])
            frames[i] = windows.by_time(self.entries[video], times.get(video), int(parts[i]), place)
        return frames

    def _read_times(
        self, videos: Iterable[int]
    ) -> tuple[dict[int, np.ndarray | None], dict[int, str]]:
        """Time stamps by video, as far as any are needed, and why there are none."""
        times: dict[int, np.ndarray | None] = {}
        obstacles: dict[int, str] = {}
        if self.windows.fps is None:
            return times, obstacles
        needed = [v for v in sorted({*map(int, videos)}) if self.entries[v].vfr is not False]
        threads = self._threads
        kept = dict(self._times)
        times = {v: kept[v] for v in needed if v in kept}
        reading = {
            v: threads.submit(_read_times, self.entries[v]) if threads else None
            for v in needed
            if v not in times
        }
        for video, future in reading.items():
            try:
                found = threads.result(future) if threads else _read_times(self.entries[video])
            except UserError as error:
                obstacles[video] = str(error)
            else:
                times[video] = self._times[video] = found
        for video in list(self._times)[:-_TIMES_KEPT]:
            self._times.pop(video, None)  # a clip may be replaced in another thread meanwhile
        return times, obstacles


def _read_times(entry: ManifestEntry) -> np.ndarray | None:
    """See `frame_times`. None (without stamps) only where the manifest does not say that the rate
    is variable: the index calls it constant then.
    """
    import av  # most plans do not need it

    from vjepa_fast.data.ffmpeg import BadVideo, frame_times

    check_unchanged(entry)
    try:
        times = frame_times(entry_url(entry), entry.frames)
    except (av.error.FFmpegError, EOFError, OSError, BadVideo) as error:
        raise UserError(
            f"found that the time stamps of {entry.path} cannot be read "
            f"({getattr(error, 'strerror', None) or error}), expected them, since data.fps is set; "
            "index its folder again or remove it"
        ) from None
    if times is None and entry.vfr:
        raise UserError(
            f"found no time stamp for each frame of {entry.path}, expected them, since its rate is "
            "variable and data.fps is set; index its folder again or remove its line"
        )
    return times


def _without_short(path: str | os.PathLike, entries: Entries, windows: Windows) -> Entries:
    """The videos of a manifest that are as long as a window, where shorter ones are refused."""
    short = windows.are_short(entries)  # tells of a missing frame rate, too
    if windows.short != "drop" or not short.any():
        return entries
    if short.all():
        raise UserError(
            f"found only videos shorter than a clip in {path}, expected longer ones, since "
            'data.short_videos is "drop"; set it to "repeat_last" or "wrap", or ask for shorter '
            "clips"
        )
    _logger.info("%s: %d of %d videos left out, shorter than a clip", path, short.sum(), len(short))
    return entries.take(~short)


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
