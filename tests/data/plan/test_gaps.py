"""Clips in seconds of videos with gaps: they show moving pictures where there are any."""

import hashlib
import logging

import numpy as np
import pytest

from tests.data.prepare.test_inspect import write_timed
from tests.helpers import videos
from vjepa_fast.data.decode.pyav import decode_clip
from vjepa_fast.data.manifest.entries import entries_of
from vjepa_fast.data.manifest.entry import ManifestEntry
from vjepa_fast.data.manifest.files import read_manifest
from vjepa_fast.data.plan.crops import Augment
from vjepa_fast.data.plan.frame_sampling import Windows
from vjepa_fast.data.plan.gaps import start_outside_gaps
from vjepa_fast.data.plan.planner import ClipPlanner
from vjepa_fast.data.prepare.index import index_directory

WINDOWS = Windows(16, 4, fps=4.0)  # of 4 seconds
POSITIONS = (np.arange(1000) + 0.5) / 1000


def entry_of(times):
    rate = (len(times) - 1) / times[-1]
    return ManifestEntry("v.mp4", len(times), rate, 64, 48, "h264", 1, 1, vfr=True)


def clips_of(times, windows=WINDOWS, part=0):
    entry = entry_of(times)
    return np.stack([windows.frames_at_fps(entry, times, part, p) for p in POSITIONS])


def distinct(clips):
    return np.array([len(set(clip)) for clip in clips.tolist()])


def steady(first, seconds, rate=25):
    return first + np.arange(round(seconds * rate)) / rate


def test_a_gap_of_ten_minutes_is_avoided():
    """Ten seconds, ten minutes of one frame, ten seconds: 988 of 1000 clips showed only that."""
    times = np.concatenate([steady(0, 10), steady(610, 10)])
    clips = clips_of(times)
    assert distinct(clips).min() >= 8
    first = times[clips[:, 0]]
    assert (np.histogram(first, [0, 2, 4, 6, 8.1])[0] > 80).all()  # evenly over both sides
    assert (np.histogram(first[first >= 610], [610, 612, 614, 616.1])[0] > 80).all()
    assert distinct(clips_of(times, Windows(16, 4, 4.0, clips=2), part=1)).min() >= 8


def test_without_a_gap_the_clips_are_those_of_before():
    """The digest is that of commit 63ed164, which knew no gaps."""
    random = np.random.default_rng(0)
    jittered = np.concatenate([[0.0], np.cumsum(random.uniform(0.01, 0.09, 2000))])
    slides = np.arange(50) * 7.0
    two_rates = np.concatenate([steady(0, 40, 25), steady(40, 40, 5)])
    digest = hashlib.sha256()
    for times in (jittered, slides, two_rates):
        for windows in (WINDOWS, Windows(16, 4, 4.0, "wrap"), Windows(8, 4, 30.0, clips=3)):
            digest.update(clips_of(times, windows, windows.clips - 1).astype("<i8").tobytes())
    assert digest.hexdigest() == "05679cc4262218decfeb1a185099bb78b33aa063368ee6ec9d52a8797ad14e74"


def test_windows_that_show_enough_stay():
    times = np.append(np.concatenate([steady(0, 60), steady(70, 60)]), 130.0)
    for position in POSITIONS:
        start = 126 * position
        found = start_outside_gaps(times, start, (0.0, 126.0), 126.0, 4.0, 0.25)
        lost = np.clip(min(start + 4, 70) - max(start, 60.21), 0, None)
        assert (found == start) == (lost <= 2) or abs(lost - 2) < 0.01
        assert abs(found - start) == 0 or not 58.2 < found < 67.9


def test_where_every_place_has_a_gap_the_best_ones_are_taken():
    """A camera that films one second when something moves, then nothing for a minute."""
    times = np.concatenate([steady(61 * i, 1) for i in range(20)])
    assert distinct(clips_of(times)).min() >= 3
    frozen = np.concatenate([steady(0, 0.2), [100.0]])
    assert (distinct(clips_of(frozen)) == 2).mean() > 0.8  # at the ends of its two long frames


def test_a_part_that_is_all_gap_takes_from_the_others():
    times = np.concatenate([steady(0, 30), steady(90, 3)])
    windows = Windows(16, 4, 4.0, clips=3)
    for part in range(3):
        assert distinct(clips_of(times, windows, part)).min() >= 8
    early = clips_of(times, windows, 0)
    assert (early < 750).all()


def test_the_pictures_of_a_file_with_a_gap_and_the_warning(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("vjepa_fast"), "propagate", True)
    folder = tmp_path / "videos"
    folder.mkdir()
    times = np.concatenate([steady(0, 4, 20), steady(604, 4, 20)])
    write_timed(folder / "gap.mp4", times)
    write_timed(folder / "steady.mp4", steady(0, 4, 20))
    write_timed(folder / "slides.mp4", np.arange(6) * 5.0)
    for _ in range(2):  # the second time from the manifest
        caplog.clear()
        index_directory(folder, tmp_path / "m.csv", workers=1)
        (message,) = [r.getMessage() for r in caplog.records if "gap" in r.getMessage()]
        assert "m.csv: found 1 videos with a gap in their time stamps (the longest: " in message
        assert "gap.mp4 shows one frame for 600.0 of its" in message
    entries = read_manifest(tmp_path / "m.csv")
    assert [round(entry.longest_frame, 2) for entry in entries] == [600.05, 5.0, 0.05]
    whole = Augment(area=(1.0, 1.0), aspect_ratio=(64 / 48, 64 / 48), flip=False)
    planner = ClipPlanner(
        [entries_of(entries[:1])], num_frames=8, frame_step=1, fps=8, augment=whole, seed=3
    )
    for plan in planner.plan(range(20)):
        shown = videos.read_numbers(decode_clip(plan, entries[0], 48).numpy())
        assert len(set(shown)) >= 4


@pytest.mark.parametrize("position", [0.0, 1.0])
@pytest.mark.parametrize("gap_first", [False, True])
def test_the_ends_of_the_range(position, gap_first):
    """The very first and last start are moved like any other, also where the gap begins or ends."""
    times = np.concatenate([steady(0, 2), steady(600, 0.2)])
    if gap_first:
        times = np.append(0.0, steady(600, 6))
    frames = WINDOWS.frames_at_fps(entry_of(times), times, 0, position)
    assert len(set(frames.tolist())) >= 7
    assert (np.diff(frames) >= 0).all() and frames[0] >= 0 and frames[-1] < len(times)
