"""Plans are pure functions of (seed, sample id) and have the documented distributions."""

import json
from dataclasses import replace

import numpy as np
import pytest

from tests.helpers.paths import GOLDEN
from vjepa_fast.data.manifest.entries import entries_of
from vjepa_fast.data.manifest.entry import ManifestEntry
from vjepa_fast.data.plan.crops import Augment, random_crops
from vjepa_fast.data.plan.frame_sampling import window_frames
from vjepa_fast.data.plan.planner import ClipPlanner
from vjepa_fast.data.plan.video_order import MIXTURE_BLOCK, VideoOrder, shuffled
from vjepa_fast.errors import UserError

RECORDED = json.loads((GOLDEN / "clip_frames.json").read_text())
ENTRY = ManifestEntry("a.webm", 100, 25.0, 320, 240, "vp9", 1, 1, {"digit": 0})


def manifest(frames, name="m.csv", **changes):
    entries = [
        replace(ENTRY, path=f"{name}{i}", frames=count, **changes) for i, count in enumerate(frames)
    ]
    return entries_of(entries, source=name)


def planner(*manifests, weights=None, seed=0, augment=None, num_frames=4, frame_step=2):
    augment = augment or Augment()
    return ClipPlanner(
        manifests,
        weights,
        num_frames=num_frames,
        frame_step=frame_step,
        augment=augment,
        seed=seed,
    )


def as_tuple(plan):
    return (plan.sample_id, plan.video, tuple(plan.frames), plan.crop, plan.flip)


@pytest.mark.parametrize("row", [row for row in RECORDED if not row.get("short")])
def test_frames_of_a_window_are_the_published_ones(row):
    frames = window_frames(
        np.array([row["num_frames"]]), row["frames_per_clip"], row["frame_step"], [row["start"]]
    )
    assert frames.dtype == np.int64
    assert frames[0].tolist() == row["frames"]


def test_golden_rows_in_one_call_agree_too():
    rows = [row for row in RECORDED if row["frames_per_clip"] == 16 and not row.get("short")]
    counts, starts = np.array([(row["num_frames"], row["start"]) for row in rows]).T
    assert window_frames(counts, 16, 4, starts).tolist() == [row["frames"] for row in rows]


def test_a_short_video_keeps_its_pace_and_repeats_the_last_frame():
    long = window_frames(np.array([64]), 16, 4, np.array([0]))[0]
    assert long.tolist() == [0, 4, 8, 12, 17, 21, 25, 29, 34, 38, 42, 46, 51, 55, 59, 63]
    for count in (1, 2, 5, 17, 40, 63):
        short = window_frames(np.array([count]), 16, 4, np.array([0]))[0]
        assert short.tolist() == [min(frame, count - 1) for frame in long]


def test_a_plan_depends_on_seed_and_sample_id_only():
    path = manifest(range(5, 45))
    ids = [7, 0, 10**12, 41, 7, 3]
    together = [as_tuple(plan) for plan in planner(path).plan(ids)]
    alone = [as_tuple(planner(path).plan([i])[0]) for i in ids]
    assert together == alone
    assert together[0] == together[4]
    other = [as_tuple(plan) for plan in planner(path, seed=1).plan(ids)]
    assert all(a != b for a, b in zip(together, other, strict=True))


def test_a_plan_says_what_the_manifest_says():
    path = manifest([30, 40])
    made = planner(path)
    for plan in made.plan(range(10)):
        entry = made.entries[plan.video]
        assert (plan.path, plan.labels) == (entry.path, {"digit": 0})
        assert plan.frames.dtype == np.int64 and plan.frames.shape == (4,)


@pytest.mark.parametrize("size", [1, 2, 3, 10, 97, 1000])
def test_every_video_comes_once_per_epoch(size):
    order = VideoOrder([size], None, seed=3)
    epochs = order.videos(np.arange(5 * size)).reshape(5, size)
    assert (np.sort(epochs, axis=1) == np.arange(size)).all()
    if size >= 10:
        assert len({tuple(epoch) for epoch in epochs}) == 5


def test_orders_look_random():
    cycles = np.repeat(np.arange(400), 50)
    orders = shuffled(1, 1, cycles, np.tile(np.arange(50), 400), 50).reshape(400, 50)
    first = np.bincount(orders[:, 0], minlength=50)
    follows = np.bincount((orders[:, 1] - orders[:, 0]) % 50, minlength=50)[1:]
    # Chi squared at 49 and 48 degrees of freedom: 99.99 % of random orders stay below 100.
    assert ((first - 8) ** 2 / 8).sum() < 100
    assert ((follows - 400 / 49) ** 2 / (400 / 49)).sum() < 100


def test_a_mixture_is_exact_in_every_block_and_each_pool_has_its_epochs():
    order = VideoOrder([500, 70, 1], [6.0, 3.0, 1.0], seed=0)
    videos = order.videos(np.arange(MIXTURE_BLOCK, 3 * MIXTURE_BLOCK))
    for block in videos.reshape(2, MIXTURE_BLOCK):
        pools = np.searchsorted([500, 570], block, side="right")
        assert np.bincount(pools).tolist() == [6000, 3000, 1000]
        # Well mixed, too: a tenth of the block has about a tenth of each.
        assert abs(np.bincount(pools[:1000], minlength=3) - [600, 300, 100]).max() < 80
    assert (np.bincount(videos)[:500] == 24).all()
    small = np.concatenate([order.videos(np.arange(MIXTURE_BLOCK)), videos])
    small = small[(small >= 500) & (small < 570)]
    counts = np.bincount(small - 500)
    assert counts.min() == 9000 // 70 and counts.max() == -(-9000 // 70)


def test_without_weights_manifests_are_one_pool():
    paths = [manifest([30] * 7, "a.csv"), manifest([30] * 5, "b.csv")]
    assert sorted(plan.video for plan in planner(*paths).plan(range(12, 24))) == list(range(12))


def test_labels_are_those_that_all_manifests_have():
    first = manifest([30], "a.csv", labels={"digit": 1, "direction": 2})
    second = manifest([30], "b.csv", labels={"direction": 5})
    made = planner(first, second)
    assert made.label_names == ["direction"]
    assert sorted(plan.labels["direction"] for plan in made.plan([0, 1])) == [2, 5]


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0], [1.0, -2.0], [1.0, 1e-6], [1.0, np.nan]])
def test_bad_weights_are_rejected(weights):
    path = manifest([30])
    with pytest.raises(UserError, match=r"found .*weight"):
        planner(path, path, weights=weights)


def test_no_manifest_is_rejected():
    with pytest.raises(UserError, match="found no manifest"):
        planner()


def test_windows_start_everywhere():
    path = manifest([12])
    firsts = [plan.frames[0] for plan in planner(path).plan(range(2000))]
    counts = np.bincount(firsts)  # 12 frames, a window of 8: starts 0 .. 4
    assert len(counts) == 5 and abs(counts - 400).max() < 90


def test_crops_are_inside_and_distributed_as_promised():
    n = 20_000
    heights, widths = np.full(n, 240), np.full(n, 320)
    crops = random_crops(5, np.arange(n), heights, widths, Augment())
    top, left, height, width = crops.T
    assert crops.min() >= 0
    assert ((top + height <= 240) & (left + width <= 320)).all()
    area, aspect = height * width / (240 * 320), width / height
    assert 0.295 < area.min() < 0.31 and 0.95 < area.max() <= 1
    assert 0.74 < aspect.min() < 0.76 and 1.33 < aspect.max() < 1.36
    small = area < 0.45  # there everything fits, so the aspect ratio is log-uniform as drawn
    middle = np.sqrt(0.75 * 1.35)
    assert 0.48 < (aspect[small] < middle).mean() < 0.52
    room = 240 - height > 20
    assert 0.48 < (top[room] / (240 - height)[room]).mean() < 0.52
    assert (top == 0).any() and (top + height == 240).any()
    assert (left == 0).any() and (left + width == 320).any()


@pytest.mark.parametrize(("height", "width", "box"), [(10, 1000, (10, 14)), (1000, 10, (13, 10))])
def test_where_no_crop_fits_the_largest_centered_one_is_taken(height, width, box):
    augment = Augment(area=(0.9, 1.0))
    (crop,) = random_crops(0, np.array([0]), np.array([height]), np.array([width]), augment)
    assert tuple(crop[2:]) == box
    assert crop[0] == (height - crop[2]) // 2 and crop[1] == (width - crop[3]) // 2


def test_half_the_clips_are_flipped_unless_switched_off():
    path = manifest([30])
    flips = [plan.flip for plan in planner(path).plan(range(4000))]
    assert 0.47 < np.mean(flips) < 0.53
    still = planner(path, augment=Augment(flip=False)).plan(range(100))
    assert not any(plan.flip for plan in still)


def test_evaluation_takes_each_video_once_from_the_middle():
    path = manifest([3, 20, 21])
    made = ClipPlanner.in_order(path, num_frames=4, frame_step=2)
    plans = made.plan([0, 1, 2])
    assert [plan.video for plan in plans] == [0, 1, 2]
    assert plans[0].frames.tolist() == [0, 2, 2, 2]
    assert plans[1].frames.tolist() == plans[2].frames.tolist() == [6, 8, 11, 13]
    for plan in plans:
        assert plan.crop == (0.0, 0.125, 1.0, 0.75) and not plan.flip
    with pytest.raises(ValueError, match="below 3"):
        made.plan([3])


def test_negative_sample_ids_are_rejected():
    with pytest.raises(ValueError, match="sample ids"):
        planner(manifest([30])).plan([-1])


def test_replacements_go_through_the_other_videos_of_the_manifest():
    paths = [manifest([30] * 7, "a.csv"), manifest([30] * 40, "b.csv")]
    made = planner(*paths, weights=[1.0, 1.0])
    seen = set()
    for sample_id in [0, 1, 2, 3, 10**6, 10**12]:
        assert as_tuple(made.plan_one(sample_id)) == as_tuple(made.plan([sample_id])[0])
        first = made.plan_one(sample_id).video
        others = set(range(7) if first < 7 else range(7, 47)) - {first}
        order = [made.plan_one(sample_id, attempt) for attempt in range(1, len(others) + 1)]
        assert {plan.video for plan in order} == others
        assert all(plan.sample_id == sample_id for plan in order)
        again = planner(*paths, weights=[1.0, 1.0]).plan_one(sample_id, 3)
        assert as_tuple(again) == as_tuple(order[2])
        with pytest.raises(UserError, match=rf"found all {len(others) + 1} videos that sample"):
            made.plan_one(sample_id, len(others) + 1)
        seen.add(tuple((plan.video - first) % len(others) for plan in order[:3]))
    assert len(seen) > 3  # an order of each sample's own


def test_where_nothing_can_take_its_place_that_is_an_error():
    path = manifest([30])
    with pytest.raises(UserError, match="found no other video"):
        planner(path).plan_one(0, 1)
    with pytest.raises(
        UserError, match=r"m\.csv0: found a file that does not decode, .* evaluation"
    ):
        ClipPlanner.in_order(path, num_frames=4, frame_step=2).plan_one(0, 1)
