"""Which clips the views of a video are."""

from __future__ import annotations

import numpy as np
import pytest

from vjepa_fast.data.manifest.entries import Entries, entries_of
from vjepa_fast.data.manifest.entry import ManifestEntry
from vjepa_fast.data.plan.crops import Augment
from vjepa_fast.data.plan.frame_sampling import TimedWindow
from vjepa_fast.errors import UserError
from vjepa_fast.evaluation.views.plan import ViewPlan
from vjepa_fast.inference.clips import Sampling


def videos(*sizes: tuple[int, int, int], vfr: bool | None = False) -> Entries:
    """Entries of (frames, width, height) at 25 frames per second, images where there is one."""
    return entries_of(
        ManifestEntry(
            f"/videos/{i}.mp4", count, 0.0 if count == 1 else 25.0, *size, "h264", 1, 1, vfr=vfr
        )
        for i, (count, *size) in enumerate(sizes)
    )


def test_three_crops_are_the_ends_and_the_middle_of_the_longer_side() -> None:
    """At the size where nothing is resized: what the public evaluation cuts, to the pixel."""
    plan = ViewPlan(Sampling(2, 24, 1), crops=3)
    entries = videos((9, 41, 24), (9, 24, 41), (9, 24, 24))
    found = [plan.plans(entries, np.array([row])) for row in range(3)]
    boxes = [
        [np.array(clip.crop) * ([h, w] * 2) for clip in clips]
        for clips, (h, w) in zip(found, ((24, 41), (41, 24), (24, 24)), strict=True)
    ]
    starts = np.array([0, 8, 16])  # steps of (41 - 24) // 2
    zeros, sides = np.zeros(3), np.full(3, 24)
    assert np.allclose(boxes[0], np.stack([zeros, starts, sides, sides], 1))
    assert np.allclose(boxes[1], np.stack([starts, zeros, sides, sides], 1))
    assert np.allclose(boxes[2], np.stack([zeros, zeros, sides, sides], 1))


def test_one_crop_is_the_middle_and_that_of_an_image_the_center_view() -> None:
    entries = videos((9, 340, 256), (1, 340, 256))
    video, image = ViewPlan(Sampling(2, 224, 1)).plans(entries, np.array([0, 1]))
    size = [256, 340, 256, 340]
    assert np.allclose(np.array(video.crop) * size, [0, 42, 256, 256])
    assert np.allclose(np.array(image.crop) * size, [16, 58, 224, 224])


def test_segments_are_spread_and_views_share_their_frames() -> None:
    plan = ViewPlan(Sampling(4, 24, 2), segments=3, crops=3)
    entries = videos((30, 40, 24), (5, 40, 24), (1, 40, 24))
    clips = plan.plans(entries, np.array([2, 0, 1]))
    assert [clip.video for clip in clips] == [2] * 9 + [0] * 9 + [1] * 9
    image, long, short = clips[:9], clips[9:18], clips[18:]
    for video in (image, long, short):
        for s in range(3):  # view, then segment
            assert video[s].frames is video[3 + s].frames is video[6 + s].frames
            assert len({video[3 * v + s].crop for v in range(3)}) == 3
    # 23 positions where 8 frames fit, in three parts; the middle of each.
    assert [clip.frames[0] for clip in long[:3]] == [3, 10, 18]
    assert all(clip.frames.tolist() == [0] * 4 for clip in image)
    assert all(clip.frames.tolist() == [0, 2, 4, 4] for clip in short)


@pytest.mark.parametrize(("count", "frames"), [(2, [0, 0]), (16, [0] * 16)])
@pytest.mark.parametrize("fps", [None, 4.0])
def test_images_become_clips(count: int, frames: list[int], fps: float | None) -> None:
    entries = videos((1, 40, 24), (200, 40, 24))
    image, video = ViewPlan(Sampling(count, 24, 4, fps)).plans(entries, np.array([0, 1]))
    assert image.frames.tolist() == frames
    assert len(set(video.frames.tolist())) == count


def test_clips_in_seconds_wait_for_time_stamps_where_the_rate_varies() -> None:
    plan = ViewPlan(Sampling(4, 24, fps=5), segments=2)
    first, second = plan.plans(videos((100, 40, 24), vfr=True), np.array([0]))
    assert [clip.frames.part for clip in (first, second)] == [0, 1]
    assert isinstance(first.frames, TimedWindow) and first.frames.windows.clips == 2
    constant = plan.plans(videos((100, 40, 24)), np.array([0]))
    assert [clip.frames.tolist() for clip in constant] == [[20, 25, 30, 35], [60, 65, 70, 75]]


def test_random_views_depend_on_the_epoch_row_and_segment_alone() -> None:
    entries = videos(*[(60, 80, 48)] * 40)
    plan = ViewPlan(Sampling(4, 24, 2), segments=3, augment=Augment(flip=False), seed=5)

    def shown(rows: list[int], epoch: int) -> dict[tuple[int, int], tuple]:
        clips = plan.plans(entries, np.array(rows), epoch)
        assert not any(clip.flip for clip in clips)
        found = [(clip.frames.tolist(), clip.crop) for clip in clips]
        return {(row, s): found[3 * i + s] for i, row in enumerate(rows) for s in range(3)}

    alone, together = shown([7], 2), shown([3, 7, 39], 2)
    assert alone.items() <= together.items()
    assert not any(alone[key] == shown([7], 3)[key] for key in alone)
    assert len({crop for _, crop in shown(list(range(40)), 2).values()}) == 120
    starts = np.array([[shown([row], 0)[row, s][0][0] for s in range(3)] for row in range(40)])
    parts = np.array([0, 17, 35, 53])  # 53 positions where 8 frames fit
    assert (starts >= parts[:-1]).all() and (starts < parts[1:]).all()
    assert len(np.unique(starts)) > 30


def test_flips_are_asked_for() -> None:
    plan = ViewPlan(Sampling(4, 24, 2), augment=Augment(flip=True), seed=5)
    flips = [clip.flip for clip in plan.plans(videos(*[(60, 80, 48)] * 200), np.arange(200))]
    assert 60 < sum(flips) < 140


def test_plans_that_make_no_sense() -> None:
    with pytest.raises(UserError, match="crops: found 0, expected 1 to 99; choose"):
        ViewPlan(Sampling(4, 24), crops=0)
    with pytest.raises(UserError, match="crops: found 3 with random crops, expected 1; leave"):
        ViewPlan(Sampling(4, 24), crops=3, augment=Augment())
