"""Which clips of a video features are computed for: frames by the training's rules, center view."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from vjepa_fast.data.decode.backend import Decoder
from vjepa_fast.data.decode.pyav import decode_clip
from vjepa_fast.data.decode.time_stamps import clip_frames
from vjepa_fast.data.ffmpeg import BadVideo
from vjepa_fast.data.manifest.entries import Entries, entries_of
from vjepa_fast.data.manifest.entry import ManifestEntry
from vjepa_fast.data.plan.clip_plan import ClipPlan
from vjepa_fast.data.plan.crops import center_view
from vjepa_fast.data.plan.frame_sampling import TimedWindow, Windows, seconds_of, window_frames
from vjepa_fast.data.prepare.inspect import probe_video
from vjepa_fast.errors import UserError

AHEAD = 4  # batches decoded ahead
_TICK = 0.001  # seconds, to which time stamps are rounded


@dataclass(frozen=True)
class Sampling:
    """Frames and size of a clip, as in the data section of a config.

    The picture is the center view of published models, see `data.plan.crops.center_view`.

    Attributes:
        num_frames: frames of a clip.
        crop_size: height and width in pixels.
        frame_step: step between frames, without `fps`.
        fps: frames per second, by time stamps; None: `frame_step` counts.
    """

    num_frames: int
    crop_size: int
    frame_step: int = 4
    fps: float | None = None

    def windows(self, clips: int = 1, avoid_gaps: bool = True) -> Windows:
        """The rule that takes the frames of `clips` clips out of a video."""
        return Windows(
            self.num_frames, self.frame_step, self.fps, clips=clips, avoid_gaps=avoid_gaps
        )

    @property
    def in_words(self) -> str:
        """How long a clip is."""
        if self.fps is None:
            return f"{self.num_frames * self.frame_step} frames of the video"
        return f"{self.num_frames / self.fps:g} s"


class ClipList:
    """The clips of videos, numbered through: those of video 0 first, each video's in order of time.

    Args:
        entries: the videos.
        sampling: of each clip.
        clips: clips of each video, spread evenly: the positions where a clip fits are divided into
            that many equal parts, and clip i starts in the middle of part i.
        window_step: instead, clips from every window_step-th frame of the video on, as long as they
            fit. With `fps`, every window_step / (the video's mean frame rate) seconds, which is not
            the same where the rate varies; also within gaps, out of which other clips are moved.

    Attributes:
        entries: as given.
        sampling: as given.
        short: videos that are shorter than a clip, bool [videos]; each has one clip, which
            cannot be planned. An image is not short: it fills any clip.
        video_of: video of each clip, int64 [clips].
        number: number of each clip within its video, int64 [clips].

    Raises:
        UserError: a clip is in seconds and a video has no frame rate.
    """

    def __init__(
        self,
        entries: Entries,
        sampling: Sampling,
        clips: int = 1,
        window_step: int | None = None,
    ) -> None:
        self.entries, self.sampling = entries, sampling
        self._windows = sampling.windows(1 if window_step else clips, avoid_gaps=not window_step)
        self._window_step = window_step
        self.short = self._windows.shorter_than_clip(entries)
        counts = self._window_counts() if window_step else np.full(len(entries), clips)
        counts = np.where(self.short, 1, counts)
        self.video_of = np.repeat(np.arange(len(entries)), counts)
        first = np.cumsum(counts) - counts
        self.number = np.arange(len(self.video_of)) - first[self.video_of]

    def __len__(self) -> int:
        """The number of clips."""
        return len(self.video_of)

    def plan(self, clip: int) -> ClipPlan:
        """The plan of a clip of a video that is not short."""
        video = int(self.video_of[clip])
        entry = self.entries[video]
        height, width = entry.height, entry.width
        box = center_view(np.array([height]), np.array([width]), self.sampling.crop_size)[0]
        return ClipPlan(
            sample_id=clip,
            path=entry.path,
            video=video,
            frames=self._frames(entry, int(self.number[clip])),
            crop=tuple((box / (height, width, height, width)).tolist()),
            flip=False,
            labels=entry.labels,
        )

    def _window_counts(self) -> np.ndarray:
        """How many windows fit into each video, int64 [videos]."""
        sampling, step = self.sampling, self._window_step
        frames, rates = self.entries.column("frames").astype(np.int64), self.entries.column("fps")
        image = self.entries.images
        if sampling.fps is None:
            spare = frames - sampling.num_frames * sampling.frame_step
        else:  # in frames of the video, too
            rates = np.where(image, 1.0, rates)
            spare = np.floor(frames - (sampling.num_frames / sampling.fps - _TICK) * rates)
        return np.where(image, 1, 1 + np.maximum(spare, 0) // step).astype(np.int64)

    def _frames(self, entry: ManifestEntry, number: int) -> np.ndarray | TimedWindow:
        sampling, windows, step = self.sampling, self._windows, self._window_step
        counts = np.array([entry.frames])
        if sampling.fps is None:
            if step is None:
                return windows.frames_at_step(counts, np.array([number]), None)[0]
            start = np.array([number * step])
            return window_frames(counts, sampling.num_frames, sampling.frame_step, start)[0]
        timed = TimedWindow(windows, number, 0.5)
        if step is not None:
            spare = seconds_of(entry) - sampling.num_frames / sampling.fps
            start = number * step / entry.fps if number else 0.0
            timed = TimedWindow(windows, 0, min(start / spare, 1.0) if spare > 0 else 0.0)
        # Without time stamps only where the manifest says that the rate is constant.
        return timed.frames(entry, None) if entry.vfr is False else timed


def inspect_video(path: Path) -> Entries:
    """A single video file, as a manifest would describe it.

    Raises:
        UserError: it is missing, an image, or no usable video.
    """
    if path.is_dir() or not path.exists():
        found = "a folder" if path.is_dir() else "no such file"
        raise UserError(
            f"{path}: found {found}, expected a video file; check the path, and for many videos "
            "write a manifest with `vjepa-fast index FOLDER --output MANIFEST.csv`"
        )
    try:
        entry = probe_video(path, min_frames=1)
    except BadVideo as error:
        raise UserError(
            f"{path}: found {error}, expected a video; choose another file or repair it"
        ) from None
    if entry.is_image:
        raise UserError(
            f"{path}: found an image ({entry.codec}), expected a video; to repeat images in all "
            "frames of a clip, index their folder and name the manifest"
        )
    return entries_of([entry], str(path))


def read_middle_clip(path: Path, sampling: Sampling) -> Tensor:
    """The middle clip of a video file: uint8 [T, S, S, 3].

    Raises:
        UserError: no usable video, or one shorter than a clip.
    """
    clips = ClipList(inspect_video(path), sampling)
    check_length(clips)
    return decode_clip(clips.plan(0), clips.entries[0], sampling.crop_size)


def check_length(clips: ClipList) -> None:
    """Raise UserError where all videos are shorter than a clip."""
    if not clips.short.all():
        return
    entry, others = clips.entries[0], len(clips.entries) - 1
    rate = f" at {entry.fps:g} frames per second" if entry.fps > 0 else ""
    also = f" ({others} others are too short as well)" if others else ""
    raise UserError(
        f"{entry.path}: found {entry.frames} frames{rate}{also}, expected at least "
        f"{clips.sampling.in_words}, the length of a clip; choose longer videos, or load the "
        "encoder with a smaller num_frames"
    )


def with_frames(plans: list[ClipPlan], entries: Entries, decoder: Decoder) -> list[ClipPlan]:
    """Plans with frame indices, also where they follow from a file's time stamps.

    Where those cannot be read the plan stays as it is: the decoder finds the same, and says why.
    """
    timed = {id(p.frames): p for p in plans if isinstance(p.frames, TimedWindow)}
    found = {
        key: decoder.pool.submit(clip_frames, plan, entries[plan.video])
        for key, plan in timed.items()
    }
    frames = {}
    for key, future in found.items():
        with suppress(UserError):
            frames[key] = future.result()
    return [replace(p, frames=frames[id(p.frames)]) if id(p.frames) in frames else p for p in plans]


def decode_ahead(
    batches: Iterable[list[ClipPlan]], decoder: Decoder
) -> Iterator[tuple[list[ClipPlan], Tensor, dict[int, str]]]:
    """Decode batches of clips in order, some of them ahead of the consumer.

    Yields:
        plans; video, uint8 [B, T, S, S, 3]; reasons of failed clips by their index in the batch.
    """
    pending = deque()
    for plans in batches:
        pending.append((plans, decoder.submit(plans)))
        if len(pending) > AHEAD:
            plans, submitted = pending.popleft()
            yield plans, *decoder.collect(plans, submitted)
    while pending:
        plans, submitted = pending.popleft()
        yield plans, *decoder.collect(plans, submitted)
