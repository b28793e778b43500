"""H.264 copies keep time stamps that pause for hours or days, which MP4 counts in 32 bits."""

import numpy as np
import pytest

from tests.data.frames.makers.numbered_videos import RATE, encode
from vjepa_fast.data.ffmpeg import frame_times
from vjepa_fast.data.prepare.encode import Settings, encode_copy

_FRAMES = 20


@pytest.mark.parametrize(
    ("suffix", "hours"),  # in units of 1 / 1000 (mkv) and 1 / 90,000 seconds
    [("mkv", 1), ("mkv", 48), ("mkv", 100), ("ts", 1), ("ts", 8), ("ts", 20)],
)
def test_a_copy_keeps_a_pause(tmp_path, suffix, hours):
    pause = hours * 3600 * RATE
    stamps = [i + pause * (i >= 10) for i in range(_FRAMES)]
    source = encode("h264", "plain", tmp_path / f"video.{suffix}", _FRAMES, pts=stamps)
    copy = tmp_path / "copy.mp4"
    encode_copy(str(source), None, _FRAMES, copy, Settings("h264", 64, 12), "a copy")
    times, found = (frame_times(str(path), _FRAMES) for path in (source, copy))
    assert times[-1] > hours * 3600
    assert np.abs(found - times).max() <= 0.001
