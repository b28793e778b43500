"""What each sample id shows, a pure function of (seed, sample id): video, frames, crop, flip."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from hashlib import sha256

import numpy as np

from vjepa_fast.data.manifest.entries import Entries
from vjepa_fast.data.manifest.entry import ManifestEntry
from vjepa_fast.data.plan.clip_plan import ClipPlan
from vjepa_fast.data.plan.crops import Augment, largest_centered, random_crops, random_flips
from vjepa_fast.data.plan.frame_sampling import ShortVideos, TimedWindow, Windows
from vjepa_fast.data.plan.length_order import LengthOrder
from vjepa_fast.errors import UserError
from vjepa_fast.masks.philox import STREAM_CLIP_START, bounded, draw, uniform

log = logging.getLogger("vjepa_fast")


class ClipPlanner:
    """Plans the clips of one or several manifests; opens no file.

    Training: the window starts at a random position, and the crop and the flip are random.
    `LengthOrder` maps sample ids to videos. With augment=None the window and the largest square are
    taken from the middle. Evaluation: `ClipPlanner.in_order(...)`, where sample id i is video i.

    Args:
        manifests: the videos, one `Entries` for each manifest (`open_manifest`).
        weights: weights of the manifests in a mixture, see `LengthOrder`.
        num_frames, frame_step, fps: the window, see `Windows`.
        augment: random crops and flips, or None.
        seed: seed of all random choices.
        clips_per_video: n sample ids from a multiple of n on show n clips of one video.
        short_videos: see `Windows.short`.
        own: of each manifest, what its window has other than that: num_frames, frame_step, fps.
        group: this many sample ids, from a multiple of it on, have clips of one length; a multiple
            of `clips_per_video`. Without effect where all windows have one length.

    Attributes:
        entries: the videos of all manifests, one after another, less those that are left out.
        label_names: the labels that all manifests have.

    Raises:
        UserError: no manifest, bad weights, or a manifest of which every video is left out.
    """

    def __init__(
        self,
        manifests: Sequence[Entries],
        weights: Sequence[float] | None = None,
        *,
        num_frames: int,
        frame_step: int,
        augment: Augment | None,
        seed: int = 0,
        fps: float | None = None,
        clips_per_video: int = 1,
        short_videos: ShortVideos = "repeat_last",
        own: Sequence[Mapping[str, int | float | None]] | None = None,
        group: int = 1,
    ) -> None:
        if not manifests:
            raise UserError("data.manifests: found no manifest, expected at least one; add one")
        windows = Windows(num_frames, frame_step, fps, short_videos, clips_per_video)
        self.windows = [replace(windows, **changes) for changes in own or [{}] * len(manifests)]
        manifests = list(map(_without_short, manifests, self.windows))
        for entries in manifests:
            _warn_of_old(entries)
        self.entries = Entries.joined(manifests)
        self.augment = augment
        self.seed = seed
        self.label_names = self.entries.label_names
        self._clips_per_video = clips_per_video
        sizes = list(map(len, manifests))
        self._ends = np.cumsum(sizes)
        lengths = [windows.num_frames for windows in self.windows]
        draws = max(group // clips_per_video, 1)
        self._order: LengthOrder | None = LengthOrder(sizes, lengths, weights, seed, draws)

    @classmethod
    def in_order(
        cls, entries: Entries, *, num_frames: int, frame_step: int, fps: float | None = None
    ) -> ClipPlanner:
        """A planner for evaluation: sample id i in 0 .. len-1 is video i, unaugmented."""
        planner = cls(
            [entries], num_frames=num_frames, frame_step=frame_step, augment=None, fps=fps
        )
        planner._order = None
        return planner

    def __len__(self) -> int:
        """The number of videos."""
        return len(self.entries)

    @property
    def counts(self) -> list[int]:
        """The number of videos of each manifest that clips are taken from."""
        return np.diff(self._ends, prepend=0).tolist()

    @cached_property
    def digest(self) -> str:
        """A hash (hex) of the videos in their order: file names, frames, sizes in bytes. It stays
        the same when the folder of a data set moves.
        """
        digest = sha256()
        names = self.entries.file_names()
        frames, sizes = map(self.entries.column, ("frames", "size_bytes"))
        for name, count, size in zip(names, frames, sizes, strict=True):
            digest.update(b"%b\0%d\0%d\n" % (name, count, size))
        return digest.hexdigest()

    def num_frames(self, sample_id: int) -> int:
        """Frames of a sample's clip."""
        if self._order is None:
            return self.windows[0].num_frames
        return self._order.length(sample_id // self._clips_per_video)

    def plan(self, sample_ids: Sequence[int]) -> list[ClipPlan]:
        """Plan one clip per sample id (each >= 0)."""
        ids = np.asarray(sample_ids, dtype=np.int64).reshape(-1)
        if ids.size and (ids.min() < 0 or (self._order is None and ids.max() >= len(self))):
            end = "" if self._order else f" and below {len(self)} (videos in order)"
            raise ValueError(f"found sample ids {ids.min()} .. {ids.max()}, expected >= 0{end}")
        draws = ids // self._clips_per_video
        return self._plan(ids, ids if self._order is None else self._order.videos(draws))

    def plan_one(self, sample_id: int, attempt: int = 0) -> ClipPlan:
        """One sample's plan; from attempt 1 on it shows another video, for samples whose earlier
        attempts cannot be decoded.

        A pure function of its arguments: attempt 0 is `plan([sample_id])[0]`; attempts 1, 2, … go
        through all the other videos of the same manifest (of all manifests, without weights) in an
        order that depends on the sample.

        Raises:
            UserError: no other video is left. In an evaluation that is always so, since sample id
                i can only be video i.
        """
        if attempt == 0:
            return self.plan([sample_id])[0]
        if self._order is None:
            raise UserError(
                f"{self.entries[sample_id].path}: found a file that does not decode, expected "
                "every video of an evaluation to decode; index its folder again or remove its line "
                "from the manifest"
            )
        replacement = self._order.replacement(sample_id // self._clips_per_video, attempt)
        return self._plan(np.array([sample_id]), np.array([replacement]))[0]

    def _plan(self, ids: np.ndarray, videos: np.ndarray) -> list[ClipPlan]:
        counts, heights, widths = (
            self.entries.column(name)[videos].astype(np.int64)
            for name in ("frames", "height", "width")
        )
        if self.augment is None:
            crops = largest_centered(heights, widths)
        else:
            crops = random_crops(self.seed, ids, heights, widths, self.augment)
        flips = random_flips(self.seed, ids, self.augment)
        fractions = crops / np.stack([heights, widths, heights, widths], axis=1)
        entries = [self.entries[video] for video in videos]
        frames: list[np.ndarray | TimedWindow | None] = [None] * len(entries)
        manifests = np.searchsorted(self._ends, videos, side="right")
        for manifest in np.unique(manifests).tolist():
            chosen = np.flatnonzero(manifests == manifest)
            its_entries = [entries[i] for i in chosen]
            found = frames_of_ids(
                self.windows[manifest],
                ids[chosen],
                counts[chosen],
                its_entries,
                None if self.augment is None else self.seed,
            )
            for i, clip in zip(chosen, found, strict=True):
                frames[i] = clip
        return [
            ClipPlan(
                sample_id=int(ids[i]),
                path=entries[i].path,
                video=int(video),
                frames=frames[i],
                crop=tuple(fractions[i].tolist()),
                flip=bool(flips[i]),
                labels={name: entries[i].labels[name] for name in self.label_names},
            )
            for i, video in enumerate(videos)
        ]


def frames_of_ids(
    windows: Windows,
    ids: np.ndarray,
    counts: np.ndarray,
    entries: Sequence[ManifestEntry],
    seed: int | None,
) -> Sequence[np.ndarray | TimedWindow]:
    """The frames of one clip of each video, a function of the seed and of the clip's id.

    Args:
        windows: the rule. The clip of id i starts in part i % windows.clips of its video.
        ids: of the clips, int64 [n].
        counts: frames of the videos, int64 [n].
        entries: the videos, n of them.
        seed: of the position in that part; None takes the middle.

    Returns:
        n items: int64 [T], or a TimedWindow where the file's time stamps decide.
    """
    parts = ids % windows.clips
    if windows.fps is None:
        draw_start = None if seed is None else partial(bounded, seed, STREAM_CLIP_START, ids)
        frames = windows.frames_at_step(counts, parts, draw_start)
        assert ((frames >= 0) & (frames < counts[:, None])).all()  # DALI would show black
        return frames
    positions = [0.5] * len(ids)
    if seed is not None:
        positions = uniform(draw(seed, STREAM_CLIP_START, ids, 1)[:, 0]).tolist()
    timed = [
        TimedWindow(windows, part, position)
        for part, position in zip(parts.tolist(), positions, strict=True)
    ]
    # Without time stamps only where the manifest says that the rate is constant.
    return [
        window.frames(entry, None) if entry.vfr is False else window
        for entry, window in zip(entries, timed, strict=True)
    ]


def _warn_of_old(entries: Entries) -> None:
    """Warn of a manifest that an older version wrote, which does not say what decoding needs."""
    unknown = (entries.optional_column("seek") == -1) & (entries.column("frames") > 1)
    if unknown.any():
        log.warning(
            "%s: found %d videos without the columns seek and matrix, which an older version did "
            "not write; their frames are counted from the start of the file, which is slow: run "
            "`vjepa-fast index` again",
            entries.source,
            unknown.sum(),
        )


def _without_short(entries: Entries, windows: Windows) -> Entries:
    """The videos of a manifest that are at least as long as a window, where shorter ones are left
    out.
    """
    short = windows.shorter_than_clip(entries)  # in any case: it finds missing frame rates
    if windows.short != "drop" or not short.any():
        return entries
    if short.all():
        raise UserError(
            f"{entries.source}: found only videos shorter than a clip, expected longer ones, "
            'since data.short_videos is "drop"; set it to "repeat_last" or "wrap", or shorten '
            "the clips (data.num_frames, data.frame_step, data.fps)"
        )
    log.info(
        "%s: %d of %d videos are shorter than a clip and left out",
        entries.source,
        short.sum(),
        len(short),
    )
    return entries.take(~short)
