"""The frame indices of a planned clip; those of clips in seconds follow from the time stamps."""

from __future__ import annotations

from functools import lru_cache

import av
import numpy as np

from vjepa_fast.data.ffmpeg import BadVideo, frame_times
from vjepa_fast.data.manifest.entry import ManifestEntry
from vjepa_fast.data.manifest.location import check_unchanged, entry_url
from vjepa_fast.data.plan.clip_plan import ClipPlan
from vjepa_fast.data.plan.frame_sampling import TimedWindow
from vjepa_fast.errors import UserError

_KEPT = 256  # videos per process: an hour of frames is a megabyte


def clip_frames(plan: ClipPlan, entry: ManifestEntry) -> np.ndarray:
    """The frames that a clip shows, int64 [T].

    Reads the whole file once where the plan has a TimedWindow, so call it in a killable process.

    Raises:
        UserError: the file changed since it was indexed, or its time stamps cannot be read.
    """
    if not isinstance(plan.frames, TimedWindow):
        return plan.frames
    check_unchanged(entry)
    try:
        times = _times(
            entry_url(entry), entry.mtime_ns, entry.size_bytes, entry.frames, entry.stream
        )
    except (av.error.FFmpegError, EOFError, OSError, BadVideo) as error:
        raise UserError(
            f"{entry.path}: found unreadable time stamps "
            f"({getattr(error, 'strerror', None) or error}), expected readable ones, since "
            "data.fps is set; index its folder again or remove the file"
        ) from None
    if times is None and entry.vfr:  # if the manifest does not know: constant, as `index` decides
        raise UserError(
            f"{entry.path}: found frames without a time stamp, expected one for each frame, since "
            "the frame rate is variable and data.fps is set; index its folder again or remove its "
            "line from the manifest"
        )
    return plan.frames.frames(entry, times)


@lru_cache(_KEPT)
def _times(
    url: str, mtime_ns: int, size_bytes: int, frames: int, stream: int | None
) -> np.ndarray | None:
    """`frame_times` of a file, once per process; the other arguments tell versions of it apart."""
    return frame_times(url, frames, stream)
