"""Which frames of a video a clip shows: windows counted in frames, or in seconds by time stamps."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vjepa_fast.data.manifest.entry import Entries, ManifestEntry
from vjepa_fast.errors import UserError

ShortVideos = Literal["repeat_last", "wrap", "drop"]
_TICK = 0.001  # seconds: time stamps may be rounded to whole milliseconds


@dataclass(frozen=True)
class Windows:
    """The rule that cuts `num_frames` frames out of a video.

    Without `fps` a window has num_frames * frame_step frames, see `window_frames`. With it, a
    window lasts num_frames / fps seconds and shows what the video shows every 1 / fps seconds, by
    its time stamps; `frame_step` has no say then. Of a video shorter than the window, `short`
    "repeat_last" repeats the last frame and "wrap" starts over; "drop" is for the planner to leave
    it out. With `clips` > 1, the places where a window fits are cut into that many equal parts, and
    clip i of a video starts in part i.
    """

    num_frames: int
    frame_step: int
    fps: float | None = None
    short: ShortVideos = "repeat_last"
    clips: int = 1

    def are_short(self, entries: Entries) -> np.ndarray:
        """Which videos are shorter than the window: bool [n]. Raises UserError where it is in
        seconds and a video has no frame rate.
        """
        frames = entries.column("frames")
        if self.fps is None:
            return frames < self.num_frames * self.frame_step
        rates = entries.column("fps")
        timeless = rates <= 0
        if (timeless & (frames > 1)).any():
            seconds_of(entries[int(np.argmax(timeless & (frames > 1)))])
        seconds = np.where(timeless, 0.0, frames / np.where(timeless, 1.0, rates))
        return seconds < self.num_frames / self.fps - _TICK

    def by_frames(
        self,
        counts: np.ndarray,
        parts: np.ndarray,
        draw: Callable[[np.ndarray], np.ndarray] | None,
    ) -> np.ndarray:
        """Frame indices in videos of `counts` frames (int64 [n]) for their clips number `parts`
        (int64 [n]): int64 [n, num_frames].

        `draw` takes bounds, int64 [n], and gives an integer below each; None: the middle.
        """
        places = np.maximum(counts - self.num_frames * self.frame_step, 0) + 1
        low, high = places * parts // self.clips, places * (parts + 1) // self.clips
        room = np.maximum(high - low, 1)
        starts = np.minimum(low + (draw(room) if draw else (room - 1) // 2), places - 1)
        return window_frames(counts, self.num_frames, self.frame_step, starts, self.short)

    def by_time(
        self, entry: ManifestEntry, times: np.ndarray | None, part: int, place: float
    ) -> np.ndarray:
        """Frame indices of one clip, int64 [num_frames].

        times: seconds from the first frame on, ascending, float64 [frames]; None: a constant rate.
        place: where in its part the clip starts, 0 .. 1. A frame is shown from its time stamp to
        the next one's.
        """
        total = seconds_of(entry)
        if times is not None:
            total = float(times[-1]) * entry.frames / max(entry.frames - 1, 1)
        spare = max(total - self.num_frames / self.fps, 0.0)
        points = spare * (part + place) / self.clips + np.arange(self.num_frames) / self.fps
        points = points + _TICK
        if self.short == "wrap" and total > 0:
            points = points % total
        if times is None:
            frames = np.floor(points * entry.fps).astype(np.int64)
        else:
            frames = np.searchsorted(times, points, side="right") - 1
        return np.clip(frames, 0, entry.frames - 1)


def seconds_of(entry: ManifestEntry) -> float:
    """How long a video lasts, by its manifest; an image 0. Raises UserError where that has no frame
    rate.
    """
    if entry.fps <= 0 and entry.frames == 1:
        return 0.0
    if entry.fps <= 0:
        raise UserError(
            f"found no frame rate for {entry.path} in its manifest, expected one, since clips are "
            "planned in seconds; remove its line, or set data.fps to null"
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
    at frame_step = 4. A video shorter than the window (start 0) is shown at the same pace as far as
    it goes, then its last frame is repeated, or with `short` = "wrap" it starts over.
    """
    counts, starts = np.asarray(counts)[:, None], np.asarray(starts)
    ends = starts + num_frames * frame_step
    points = np.linspace(starts, ends, num=num_frames, axis=1)
    frames = np.minimum(points, ends[:, None] - 1).astype(np.int64)
    return frames % counts if short == "wrap" else np.minimum(frames, counts - 1)
