"""Clips are decoded from files that FFmpeg did not probe, and from probed ones where that fails."""

from dataclasses import replace

import numpy as np
import pytest

from tests.data.frames.makers import mp4_files
from tests.data.frames.makers.numbered_videos import ENCODINGS, FRAMES, encode
from vjepa_fast.data.decode import pyav
from vjepa_fast.data.decode.pyav import decode_pixels
from vjepa_fast.data.ffmpeg import open_video, video_stream
from vjepa_fast.data.manifest.entry import Seek
from vjepa_fast.data.plan.clip_plan import ClipPlan
from vjepa_fast.data.prepare.inspect import probe_video
from vjepa_fast.errors import UserError


@pytest.fixture
def opened(monkeypatch):
    """Whether each of the files that clips were decoded from was probed."""
    found = []

    def noted(url, probe):
        found.append(probe)
        return open_video(url, probe)

    monkeypatch.setattr(pyav, "open_video", noted)
    return found


def clips(path):
    """At several places, near the start and near the end."""
    for first in (0, 3, 31, 45, 59, 88):
        frames = np.arange(first, FRAMES, 4)[:8]
        yield ClipPlan(0, str(path), 0, frames, (0.0, 0.0, 1.0, 1.0), False, {})


@pytest.mark.parametrize("suffix", ["mp4", "mov"])
@pytest.mark.parametrize("structure", sorted(ENCODINGS["h264"]))
def test_the_pixels_are_those_of_a_probed_file(tmp_path, monkeypatch, opened, structure, suffix):
    path = encode("h264", structure, tmp_path / f"video.{suffix}")
    entry = probe_video(path)
    unprobed = [decode_pixels(plan, entry, 64) for plan in clips(path)]
    if entry.seek == Seek.BY_STAMP:
        assert opened == [False] * len(unprobed)
    monkeypatch.setattr(pyav, "_MP4", ())
    opened.clear()
    probed = [decode_pixels(plan, entry, 64) for plan in clips(path)]
    assert all(opened) and np.array_equal(unprobed, probed)


def test_without_a_probe_no_frame_is_decoded(tmp_path):
    path = encode("h264", "bframes", tmp_path / "video.mp4")
    formats = {}
    for probe in (False, True):
        with open_video(str(path), probe) as container:
            formats[probe] = video_stream(container).codec_context.pix_fmt
    assert formats == {False: None, True: "yuv420p"}


@pytest.mark.parametrize("structure", ["bframes", "open"])
def test_a_video_that_an_edit_list_trims_is_opened_once(tmp_path, opened, structure):
    """Its first frame is no key frame: that is stored before it, and not shown."""
    path = tmp_path / "video.mp4"
    name = f"edit_in_the_middle-h264-{structure}-mp4"
    next(case for case in mp4_files.situations() if case.name == name).make(path)
    entry = probe_video(path)
    plans = [plan for plan in clips(path) if plan.frames[-1] < entry.frames]
    found = [decode_pixels(plan, entry, 64) for plan in plans]
    assert opened == [False] * 3
    counted = replace(entry, seek=Seek.NEVER)
    assert np.array_equal(found, [decode_pixels(plan, counted, 64) for plan in plans])


def test_what_fails_without_a_probe_is_tried_with_one_and_from_the_start(tmp_path, opened):
    path = encode("h264", "plain", tmp_path / "video.mp4")
    entry = probe_video(path)
    path.write_bytes(path.read_bytes()[: entry.size_bytes // 2])  # its list of frames is at the end
    file = path.stat()
    entry = replace(entry, size_bytes=file.st_size, mtime_ns=file.st_mtime_ns)
    with pytest.raises(UserError, match=r"video.mp4: found a damaged file \(FFmpeg"):
        decode_pixels(next(clips(path)), entry, 64)
    assert opened == [False, True, True]
