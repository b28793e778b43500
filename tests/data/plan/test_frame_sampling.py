"""Windows in frames and in seconds, short videos, several clips of one video, any world size."""

import os
from dataclasses import replace

import numpy as np
import pytest

from tests.config.test_schema import CONFIGS
from tests.data.prepare.test_inspect import write_timed
from tests.helpers import videos
from vjepa_fast.config import load_config
from vjepa_fast.data.decode import time_stamps
from vjepa_fast.data.decode.pyav import decode_clip
from vjepa_fast.data.decode.time_stamps import clip_frames
from vjepa_fast.data.ffmpeg import frame_times
from vjepa_fast.data.manifest.entries import entries_of
from vjepa_fast.data.manifest.entry import ManifestEntry
from vjepa_fast.data.manifest.files import write_manifest
from vjepa_fast.data.manifest.location import entry_url
from vjepa_fast.data.plan.crops import Augment
from vjepa_fast.data.plan.frame_sampling import Windows
from vjepa_fast.data.plan.planner import ClipPlanner
from vjepa_fast.data.plan.video_order import MIXTURE_BLOCK
from vjepa_fast.data.prepare.inspect import probe_video
from vjepa_fast.errors import UserError
from vjepa_fast.training.batches import Batches

ENTRY = ManifestEntry("a.webm", 100, 25.0, 320, 240, "vp9", 1, 1, {}, vfr=False)


def manifest(frames, name="m.csv", **changes):
    entries = [
        replace(ENTRY, path=f"{name}{i}", frames=count, **changes) for i, count in enumerate(frames)
    ]
    return entries_of(entries, source=name)


def planner(*manifests, num_frames=4, frame_step=2, augment=None, **settings):
    settings = {"num_frames": num_frames, "frame_step": frame_step, "augment": augment} | settings
    return ClipPlanner(manifests, **settings)


WHOLE = Augment(area=(1.0, 1.0), aspect_ratio=(4 / 3, 4 / 3), flip=False)


@pytest.mark.parametrize("extension", ["mp4", "webm"])
def test_a_target_rate_shows_the_right_pictures_of_a_variable_rate_file(tmp_path, extension):
    """Thirty frames 33 ms apart, then thirty 100 ms apart; each shows its number."""
    steps = np.where(np.arange(59) < 30, 0.033, 0.1)
    times = np.concatenate([[0], np.cumsum(steps)])
    codec = "vp9" if extension == "webm" else "h264"
    entry = probe_video(write_timed(tmp_path / f"v.{extension}", times, codec))
    made = planner(entries_of([entry]), num_frames=8, fps=5, augment=WHOLE)
    starts = set()
    for plan in made.plan(range(40)):
        shown = np.array(videos.read_numbers(decode_clip(plan, entry, 48).numpy()))
        assert shown.tolist() == clip_frames(plan, entry).tolist()
        # What a clock sees: the pictures are 200 ms apart, each up to one picture's time late.
        gaps = times[shown] - times[shown[0]] - np.arange(8) / 5
        assert (np.abs(gaps) < 0.102).all()
        starts.add(int(shown[0]))
    assert min(starts) < 15 and max(starts) > 35
    by_index = np.arange(8) * entry.fps / 5  # what a constant rate would have given: far off
    assert np.abs(times[by_index.astype(int)] - np.arange(8) / 5).max() > 0.3


def test_a_target_rate_without_variable_rate_needs_no_file():
    path = manifest([100], fps=25.0)
    (plan,) = planner(path, num_frames=5, fps=5).plan([0])
    assert np.diff(plan.frames).tolist() == [5, 5, 5, 5]
    assert plan.frames[0] == (100 - 25) // 2
    (plan,) = planner(manifest([100], fps=30000 / 1001), num_frames=6, fps=10).plan([0])
    assert np.diff(plan.frames).tolist() == [3, 3, 3, 3, 3]
    fast = planner(manifest([10], fps=5.0), num_frames=8, fps=10).plan([0])[0]
    assert np.diff(fast.frames).sum() == pytest.approx(3.5, abs=0.5)  # each frame about twice


def test_time_stamps_that_cannot_be_read_are_an_error_until_they_can(tmp_path):
    path = write_timed(tmp_path / "v.mp4", np.cumsum([0.0, *[0.033] * 20, *[0.1] * 20]))
    entry = probe_video(path)
    made = planner(entries_of([entry]), num_frames=8, fps=5)
    path.rename(tmp_path / "away")
    (plan,) = made.plan([0])  # which opens no file
    for read in (lambda: clip_frames(plan, entry), lambda: decode_clip(plan, entry, 48)):
        with pytest.raises(UserError, match=r"v\.mp4 missing"):
            read()
    (tmp_path / "away").rename(path)
    times = frame_times(entry_url(entry), entry.frames)
    expected = made.windows[0].frames_at_fps(entry, times, 0, 0.5)
    assert clip_frames(plan, entry).tolist() == expected.tolist()


def test_time_stamps_are_read_once_for_many_clips(tmp_path, monkeypatch):
    entry = probe_video(write_timed(tmp_path / "v.mp4", np.cumsum([0.0, *[0.03, 0.1] * 20])))
    made = planner(entries_of([entry]), num_frames=8, fps=5, augment=WHOLE)
    read = []
    monkeypatch.setattr(time_stamps, "frame_times", lambda *a: read.append(a) or frame_times(*a))
    assert len({tuple(clip_frames(plan, entry)) for plan in made.plan(range(20))}) > 5
    assert len(read) == 1


@pytest.mark.parametrize("vfr", [True, None])
def test_without_a_time_stamp_for_each_frame_a_variable_rate_has_no_frames(tmp_path, vfr):
    entry = probe_video(videos.write_numbered(tmp_path, "vp9", 40))
    entry = replace(entry, frames=39, vfr=vfr)  # one less than there are stamps
    assert frame_times(entry_url(entry), entry.frames) is None
    (plan,) = planner(entries_of([entry]), num_frames=4, fps=5).plan([0])
    if vfr:
        with pytest.raises(
            UserError, match="found frames without a time stamp, expected one for each"
        ):
            clip_frames(plan, entry)
    else:  # what the index, too, calls a constant rate
        assert np.diff(clip_frames(plan, entry)).tolist() == [5, 5, 5]


def test_starts_at_a_target_rate_are_anywhere():
    made = planner(manifest([50]), num_frames=4, fps=5, augment=WHOLE)
    frames = np.stack([plan.frames for plan in made.plan(range(3000))])
    counts = np.bincount(frames[:, 0], minlength=31)
    assert frames.max() == 45 and len(counts) == 31  # 1.2 s of 2 s are spare
    assert counts[:30].min() > 60 and counts[:30].max() < 145
    assert (np.abs(np.diff(frames, axis=1) - 5) <= 1).all()


def test_an_unknown_rate_cannot_be_planned_in_seconds():
    with pytest.raises(UserError, match=r"m\.csv0: found no frame rate"):
        planner(manifest([50], fps=0.0), fps=5)


def test_short_videos():
    path = manifest([5, 8, 30])

    def frames(**settings):
        made = planner(path, **settings)
        return {plan.video: plan.frames.tolist() for plan in made.plan(range(3))}

    assert frames()[0] == [0, 2, 4, 4]
    assert frames(short_videos="wrap")[0] == [0, 2, 0, 2]
    assert frames(short_videos="wrap")[1] == frames()[1] == [0, 2, 5, 7]
    assert frames(short_videos="wrap", num_frames=8, fps=10)[0] == [0, 2, 0, 2, 0, 2, 0, 2]
    assert frames(num_frames=4, fps=10)[0] == [0, 2, 4, 4]
    kept = planner(path, short_videos="drop")
    assert [entry.frames for entry in kept.entries] == [8, 30]
    assert sorted(plan.video for plan in kept.plan(range(2))) == [0, 1]
    by_time = planner(path, short_videos="drop", num_frames=4, fps=12.5)
    assert [entry.frames for entry in by_time.entries] == [8, 30]
    with pytest.raises(UserError, match=r"m\.csv: found only videos shorter than a clip"):
        planner(path, short_videos="drop", frame_step=8)


@pytest.mark.parametrize("fps", [None, 12.5])
def test_several_clips_come_from_the_parts_of_one_video(fps):
    made = planner(manifest([68] * 5), fps=fps, augment=Augment(), clips_per_video=3, seed=1)
    plans = made.plan(range(15 * 40))
    visits = np.array([plan.video for plan in plans]).reshape(-1, 3)
    assert (visits == visits[:, :1]).all()
    epochs = visits[:, 0].reshape(-1, 5)
    assert (np.sort(epochs, axis=1) == np.arange(5)).all()
    starts = np.array([plan.frames[0] for plan in plans]).reshape(-1, 3)
    for part in range(3):  # a window fits at 61 positions: 20, 20 and 21
        low, high = starts[:, part].min(), starts[:, part].max()
        assert 20 * part <= low <= 20 * part + 2 and 20 * part + 17 <= high <= 20 * part + 20
    assert len({plan.crop for plan in plans[:3]}) == 3
    others = [made.plan_one(i, 2) for i in (3, 4, 5)]
    assert len({plan.video for plan in others}) == 1 and others[0].video != plans[3].video


def test_several_clips_of_a_video_with_one_position():
    made = planner(manifest([8]), augment=Augment(), clips_per_video=3)
    assert {plan.frames[0] for plan in made.plan(range(9))} == {0}


def test_a_mixture_of_several_clips_is_exact_in_every_block():
    paths = [manifest([30] * 7, "a.csv"), manifest([30] * 3, "b.csv")]
    made = planner(*paths, weights=[3.0, 1.0], augment=WHOLE, clips_per_video=2)
    ids = np.arange(2 * MIXTURE_BLOCK, 4 * MIXTURE_BLOCK)
    assert sum(plan.video < 7 for plan in made.plan(ids)) == 1.5 * MIXTURE_BLOCK


@pytest.mark.parametrize(
    "settings",
    [["data.weights=[2.0,1.0]"], ["data.fps=5", "data.clips_per_video=2"], []],
    ids=["weights", "fps", "default"],
)
def test_every_world_size_sees_the_same_clips(tmp_path, tiny_settings, settings):
    paths = [tmp_path / "a.csv", tmp_path / "b.csv"]
    for path in paths:
        videos_of_it = manifest(range(20, 60), path.name)
        write_manifest(path, videos_of_it)
        for entry in videos_of_it:
            (tmp_path / entry.path).write_bytes(bytes(entry.size_bytes))
            os.utime(tmp_path / entry.path, ns=(0, entry.mtime_ns))
    config = tiny_settings(paths, settings)
    expected = None
    for world in (1, 2, 3, 8):
        ranks = [Batches(config, rank, world) for rank in range(world)]
        seen = []
        for step in (0, 1, 1000):
            of_ranks = [ids for rank in ranks for micro in rank.sample_ids(step) for ids in micro]
            assert sorted(of_ranks) == list(range(step * 48, step * 48 + 48))
            plans = [
                plan
                for rank in ranks
                for micro in rank.sample_ids(step)
                for plan in rank._planner.plan(micro)
            ]
            seen += sorted(
                (plan.sample_id, plan.path, tuple(plan.frames), plan.crop, plan.flip)
                for plan in plans
            )
        assert expected in (None, seen)
        expected = seen


@pytest.fixture
def tiny_settings():
    def make(paths, settings):
        quoted = ",".join(f'"{path}"' for path in paths)
        sizes = ["optim.global_batch=48", "optim.micro_batch=2", "masks.truncate_group=2"]
        overrides = [f"data.manifests=[{quoted}]", *sizes, *settings]
        return load_config(CONFIGS / "tiny.json", overrides)

    return make


def test_the_digest_tells_of_other_videos():
    first = planner(manifest([5, 6])).digest
    assert first == planner(manifest([5, 6])).digest
    assert len(first) == 64 and int(first, 16)
    others = [
        planner(manifest([6, 5])).digest,
        planner(manifest([5, 6, 7])).digest,
        planner(manifest([5, 6], size_bytes=2)).digest,
        planner(manifest([5, 6], "n.csv")).digest,
    ]
    assert len({first, *others}) == 5


def test_windows_in_frames_agree_with_the_single_clip_rule():
    counts = np.array([100, 3, 64, 65])
    windows = Windows(16, 4)
    frames = windows.frames_at_step(counts, np.zeros(4, dtype=np.int64), None)
    assert frames[:, 0].tolist() == [18, 0, 0, 0]
