"""Which frames of a video a clip shows: windows counted in frames, or in seconds by time stamps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vjepa_fast.data.manifest.entries import Entries
from vjepa_fast.data.manifest.entry import ManifestEntry
from vjepa_fast.data.plan.gaps import start_outside_gaps
from vjepa_fast.errors import UserError

ShortVideos = Literal["repeat_last", "wrap", "drop"]
_TICK = 0.001  # seconds: time stamps may be rounded to whole milliseconds


@dataclass(frozen=True)
class Windows:
    """The rule that takes `num_frames` frames out of a video.

    Attributes:
        num_frames: frames of a clip.
        frame_step: without `fps`, a window has num_frames * frame_step frames, see `window_frames`.
        fps: frames per second. A window then lasts num_frames / fps seconds and shows what the
            video shows every 1 / fps seconds, by its time stamps; `frame_step` is not used.
        short: what a video shorter than the window shows. "repeat_last" repeats its last frame,
            "wrap" starts over, "drop" has `ClipPlanner` leave the video out.
        clips: clips of each video. The positions where a window fits are divided into that many
            equal parts, and clip i starts in part i.
        avoid_gaps: with `fps`, move a window that would mostly show the one frame of a gap, see
            `start_outside_gaps`.
    """

    num_frames: int
    frame_step: int
    fps: float | None = None
    short: ShortVideos = "repeat_last"
    clips: int = 1
    avoid_gaps: bool = True

    def shorter_than_clip(self, entries: Entries) -> np.ndarray:
        """Which videos are shorter than the window: bool [n]. An image, which fills any, is not.

        Raises:
            UserError: the window is in seconds and a video has no frame rate.
        """
        frames = entries.column("frames")
        rates = entries.column("fps")
        timeless, image = rates <= 0, entries.images
        if self.fps is None:
            return (frames < self.num_frames * self.frame_step) & ~image
        if (timeless & ~image).any():
            seconds_of(entries[int(np.argmax(timeless & ~image))])
        seconds = np.where(timeless, 0.0, frames / np.where(timeless, 1.0, rates))
        return (seconds < self.num_frames / self.fps - _TICK) & ~image

    def frames_at_step(
        self,
        counts: np.ndarray,
        parts: np.ndarray,
        draw: Callable[[np.ndarray], np.ndarray] | None,
    ) -> np.ndarray:
        """Frame indices of one clip of each video, by `frame_step`.

        Args:
            counts: frames of the videos, int64 [n].
            parts: in which part the clip starts, int64 [n], each in 0 .. clips - 1.
            draw: takes bounds, int64 [n], and returns a random integer below each; None takes the
                middle.

        Returns:
            int64 [n, num_frames].
        """
        starts = np.maximum(counts - self.num_frames * self.frame_step, 0) + 1
        low, high = starts * parts // self.clips, starts * (parts + 1) // self.clips
        room = np.maximum(high - low, 1)
        first = np.minimum(low + (draw(room) if draw else (room - 1) // 2), starts - 1)
        return window_frames(counts, self.num_frames, self.frame_step, first, self.short)

    def frames_at_fps(
        self, entry: ManifestEntry, times: np.ndarray | None, part: int, position: float
    ) -> np.ndarray:
        """Frame indices of one clip, by `fps`: int64 [num_frames].

        A frame is shown from its time stamp to the next one's.

        Args:
            entry: the video.
            times: seconds from the first frame on, ascending, float64 [frames]; None means a
                constant rate.
            part: in which part the clip starts.
            position: where in that part, 0 .. 1.
        """
        total = seconds_of(entry)
        if times is not None:
            total = float(times[-1]) * entry.frames / max(entry.frames - 1, 1)
        spare = max(total - self.num_frames / self.fps, 0.0)
        start = spare * (part + position) / self.clips
        if times is not None and self.avoid_gaps:
            bounds = spare * part / self.clips, spare * (part + 1) / self.clips
            seconds = self.num_frames / self.fps
            shown = np.append(times, total)
            start = start_outside_gaps(shown, start, bounds, spare, seconds, 1 / self.fps)
        points = start + np.arange(self.num_frames) / self.fps
        points = points + _TICK
        if self.short == "wrap" and total > 0:
            points = points % total
        if times is None:
            frames = np.floor(points * entry.fps).astype(np.int64)
        else:
            frames = np.searchsorted(times, points, side="right") - 1
        return np.clip(frames, 0, entry.frames - 1)


@dataclass(frozen=True)
class TimedWindow:
    """A clip's window in seconds, of a video whose time stamps decide which frames it shows.

    The decoder reads the time stamps; the planner opens no file.

    Attributes:
        windows: the rule, with `fps`.
        part: in which of the video's parts the clip starts.
        position: where in that part, 0 .. 1.
    """

    windows: Windows
    part: int
    position: float

    def frames(self, entry: ManifestEntry, times: np.ndarray | None) -> np.ndarray:
        """The frame indices, int64 [num_frames], see `Windows.frames_at_fps`."""
        return self.windows.frames_at_fps(entry, times, self.part, self.position)


def seconds_of(entry: ManifestEntry) -> float:
    """The duration of a video, by its manifest; of an image 0.

    Raises:
        UserError: the manifest has no frame rate for it.
    """
    if entry.is_image:
        return 0.0
    if entry.fps <= 0:
        raise UserError(
            f"{entry.path}: found no frame rate in its manifest, expected one, since data.fps is "
            "set; remove its line, or set data.fps to null"
        )
    return entry.frames / entry.fps


def window_frames(
    counts: np.ndarray,
    num_frames: int,
    frame_step: int,
    starts: np.ndarray,
    short: ShortVideos = "repeat_last",
) -> np.ndarray:
    """The frame indices of windows at `starts` in videos of `counts` frames (both [n]): int64 [n,
    T].

    T = num_frames points are spread evenly over the num_frames * frame_step frames of the window,
    ends included, and truncated to integers: the published trainer's rule, hence steps of 4 and 5
    at frame_step = 4. A video shorter than the window (start 0) is shown at the same pace to its
    end; then its last frame is repeated, or with `short` = "wrap" it starts over.
    """
    counts, starts = np.asarray(counts)[:, None], np.asarray(starts)
    ends = starts + num_frames * frame_step
    points = np.linspace(starts, ends, num=num_frames, axis=1)
    frames = np.minimum(points, ends[:, None] - 1).astype(np.int64)
    return frames % counts if short == "wrap" else np.minimum(frames, counts - 1)
