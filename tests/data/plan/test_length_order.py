"""Clips of several lengths: a group has one, each length and each source has its part exactly."""

from dataclasses import replace

import numpy as np
import pytest

from vjepa_fast.data.manifest.entries import entries_of
from vjepa_fast.data.manifest.entry import ManifestEntry
from vjepa_fast.data.plan.crops import Augment
from vjepa_fast.data.plan.length_order import LengthOrder
from vjepa_fast.data.plan.planner import ClipPlanner
from vjepa_fast.data.plan.video_order import MIXTURE_BLOCK, VideoOrder
from vjepa_fast.errors import UserError

SIZES, LENGTHS, WEIGHTS = [50, 7, 20, 3], [16, 64, 16, 1], [3.0, 2.0, 1.0, 2.0]
ENDS = np.cumsum(SIZES)


@pytest.mark.parametrize("weights", [None, [3.0, 1.0]])
@pytest.mark.parametrize("group", [1, 7, 24])
def test_with_one_length_it_is_the_order_of_videos(weights, group):
    order = LengthOrder([40, 9], [16, 16], weights, seed=3, group=group)
    plain = VideoOrder([40, 9], weights, seed=3)
    draws = np.concatenate([np.arange(30_000), 10**12 + np.arange(1000)])
    videos = order.videos(draws)
    assert np.array_equal(videos, plain.videos(draws))
    for draw in range(5):
        expected = plain.replacement(draw, int(videos[draw]), 2)
        assert order.replacement(draw, 2) == expected


def test_each_length_has_its_part_of_every_block_and_nearly_of_every_step():
    order = LengthOrder(SIZES, LENGTHS, WEIGHTS, seed=0, group=4)
    firsts = 4 * np.arange(2 * MIXTURE_BLOCK)
    lengths = np.array([order.length(int(draw)) for draw in firsts])
    for block in lengths.reshape(2, -1):
        assert [(block == n).sum() for n in (16, 64, 1)] == [5000, 2500, 2500]
    for step in (1, 8, 128):  # groups of a step
        steps = lengths[: len(lengths) // step * step].reshape(-1, step)
        for length, part in ((16, 0.5), (64, 0.25), (1, 0.25)):
            assert abs((steps == length).sum(1) - part * step).max() <= 2


def test_within_a_length_the_sources_are_as_without_the_others():
    group = 4
    order = LengthOrder(SIZES, LENGTHS, WEIGHTS, seed=0, group=group)
    videos = order.videos(np.arange(4 * MIXTURE_BLOCK)).reshape(-1, group)
    lengths = np.array(LENGTHS)[np.searchsorted(ENDS, videos, side="right")]
    assert (lengths == lengths[:, :1]).all()
    assert lengths[:, 0].tolist() == [order.length(group * g) for g in range(len(videos))]
    ofs = videos[lengths[:, 0] == 16].ravel()[:MIXTURE_BLOCK]
    counts = np.bincount(np.searchsorted(ENDS, ofs, side="right"), minlength=4)
    assert counts.tolist() == [7500, 0, 2500, 0]
    assert (np.bincount(ofs)[:50] == 150).all()  # whole epochs
    long = videos[lengths[:, 0] == 64].ravel()
    for epoch in range(0, 700, 7):
        assert sorted(long[epoch : epoch + 7]) == list(range(50, 57))


def test_without_weights_lengths_are_as_frequent_as_their_videos():
    order = LengthOrder([30, 10], [16, 64], None, seed=0, group=8)
    lengths = [order.length(8 * g) for g in range(MIXTURE_BLOCK)]
    assert lengths.count(16) == 7500


def test_a_replacement_has_the_same_length():
    for weights, others in ((WEIGHTS, 49), (None, 69)):
        order = LengthOrder(SIZES, LENGTHS, weights, seed=0, group=4)
        draw = next(d for d in range(999) if order.videos(np.array([d]))[0] < 50)
        video = int(order.videos(np.array([draw]))[0])
        found = {order.replacement(draw, attempt) for attempt in range(1, others + 1)}
        of_length = [*range(50), *(range(57, 77) if weights is None else ())]
        assert found == {*of_length} - {video}


def test_too_many_lengths_are_refused():
    with pytest.raises(UserError, match="found 22 different numbers of frames, expected at most"):
        LengthOrder([1] * 22, range(22), None, seed=0, group=1)


def test_a_length_with_too_few_videos_is_refused():
    """By its own name, as the user set no weights."""
    found = r"^data\.manifests\[1\]: found clips of 64 frames with a share of 3e-05 of all clips, "
    with pytest.raises(UserError, match=found):
        LengthOrder([20_000, 1, 9_999], [16, 64, 16], None, seed=0, group=1)


def test_a_clip_has_the_window_of_its_manifest():
    entry = ManifestEntry("a", 400, 25.0, 320, 240, "vp9", 1, 1, {}, vfr=False, seek=2)
    image = replace(entry, path="i", frames=1, fps=0.0, codec="jpeg")
    manifests = [
        entries_of([replace(entry, path=f"{name}{i}") for i in range(9)]) for name in "abc"
    ]
    manifests.append(entries_of([replace(image, path=f"i{i}") for i in range(9)]))
    own = [{}, {"num_frames": 8, "fps": None, "frame_step": 3}, {"fps": 5.0}, {"num_frames": 8}]
    planner = ClipPlanner(
        manifests,
        [1.0, 1.0, 1.0, 1.0],
        num_frames=16,
        frame_step=4,
        fps=12.5,
        augment=Augment(),
        clips_per_video=2,
        own=own,
        group=6,
    )
    paces: dict[str, set[int]] = {}
    plans = planner.plan(range(6000))
    for start in range(0, 6000, 6):
        group = plans[start : start + 6]
        assert {plan.num_frames for plan in group} == {planner.num_frames(start)}
        assert [p.path for p in group[::2]] == [p.path for p in group[1::2]]  # clips of one video
    for plan in plans:
        kind = f"{plan.path[0]}{plan.num_frames}"
        paces.setdefault(kind, set()).update(np.diff(plan.frames).tolist())
    assert paces == {"a16": {2}, "b8": {3, 4}, "c16": {5}, "i8": {0}}
    alone = [planner.plan([sample_id])[0] for sample_id in (5999, 17, 3)]
    for plan in alone:
        assert plan.path == plans[plan.sample_id].path
        assert np.array_equal(plan.frames, plans[plan.sample_id].frames)
