"""Keeping clips in seconds out of gaps, where a video shows one frame for long."""

from __future__ import annotations

import numpy as np

_UNUSUAL = 10  # times the usual duration of a frame, from which on it is a gap


def start_outside_gaps(
    times: np.ndarray,
    start: float,
    bounds: tuple[float, float],
    spare: float,
    seconds: float,
    period: float,
) -> float:
    """Move the start of a window that would mostly show the one frame of a gap.

    A window that is at least half outside gaps stays where it is, and so do all windows of a video
    without gaps. The others are spread evenly over the places where windows are half outside, those
    within `bounds` if there are any; where there are none, over the best places.

    Args:
        times: when each frame begins, and when the last one ends, in seconds from the first on,
            ascending, float64 [frames + 1].
        start: of the window, within `bounds`, in seconds.
        bounds: the first and the last start that this clip may have, within 0 .. spare.
        spare: the last start of any clip.
        seconds: the window's duration.
        period: from one frame of the clip to the next, in seconds.
    """
    durations = np.diff(times)
    usual = float(np.median(durations))
    gaps = durations > max(_UNUSUAL * usual, 2 * period)
    if not gaps.any():
        return start
    # A gap counts from where its frame would usually have ended.
    edges = np.stack([times[:-1][gaps] + max(usual, period), times[1:][gaps]], axis=1).reshape(-1)
    in_gaps = np.concatenate(
        [[0.0], np.cumsum(np.diff(edges) * (np.arange(edges.size - 1) % 2 == 0))]
    )

    def lost(starts: np.ndarray) -> np.ndarray:
        """Seconds of gaps in windows: linear between the knots below."""
        return np.interp(starts + seconds, edges, in_gaps) - np.interp(starts, edges, in_gaps)

    for low, high in (bounds, (0.0, spare)):
        knots = np.unique(np.clip([low, high, *edges, *(edges - seconds)], low, high))
        values = lost(knots)
        if values.min() <= seconds / 2:
            break
    limit = max(seconds / 2, values.min() + seconds / 10)
    if lost(np.array(start)) <= limit or knots.size < 2:
        return start
    return _spread(start, knots, values, limit)


def _spread(start: float, knots: np.ndarray, values: np.ndarray, limit: float) -> float:
    """Where a start goes if those above the limit are spread evenly over those below it.

    Args:
        start: one above the limit.
        knots: ascending, float64 [n]; starts are between the first and the last.
        values: at the knots, float64 [n]; linear in between.
        limit: above the least of the values.
    """
    change = np.diff(values)
    crossing = knots[:-1] + np.diff(knots) * (limit - values[:-1]) / np.where(change, change, 1.0)
    fine = values <= limit
    first = np.where(fine[:-1], knots[:-1], np.where(fine[1:], crossing, knots[1:]))
    last = np.where(fine[1:], knots[1:], np.where(fine[:-1], crossing, knots[:-1]))
    some = first < last  # the others have no place, not even for the very first start
    first, last = first[some], last[some]
    lengths = last - first
    fine_before = np.clip(start - first, 0.0, lengths).sum()
    bad = knots[-1] - knots[0] - lengths.sum()
    target = lengths.sum() * (start - knots[0] - fine_before) / bad
    ends = np.cumsum(lengths)
    part = min(int(np.searchsorted(ends, target)), ends.size - 1)
    return float(last[part] - (ends[part] - target))
