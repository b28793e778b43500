"""Which block sizes can be drawn, and the specs that are rejected for them."""

import itertools
import math
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vjepa_fast.masks import MaskSampler, MultiBlock

GRID = (8, 14, 14)
SHORT_RANGE = MultiBlock(num_blocks=8, spatial_scale=(0.15, 0.15))
LAST = 2**32 - 1


def values(of_draw):
    """The values that a monotonic function takes over the draws word / 2**32, each with the first
    draw that gives it."""
    found, word = [], 0
    while True:
        value = of_draw(word * 2.0**-32)
        found.append((value, word * 2.0**-32))
        if value == of_draw(LAST * 2.0**-32):
            return found
        low, high = word, LAST  # of_draw(low) == value != of_draw(high)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if of_draw(middle * 2.0**-32) == value else (low, middle)
        word = high


def block_sizes(spec, grid):
    """Every (t, h, w) that a spec can draw on a grid, ascending, by trying every area."""
    low, high = spec.spatial_scale
    areas = values(lambda u: math.floor(grid[1] * grid[2] * (low + u * (high - low))))
    lengths = values(lambda u: spec.block_size(grid, u, 0.0, 0.0)[0])
    planes = {
        plane
        for _, draw in areas
        for plane, _ in values(lambda u, draw=draw: spec.block_size(grid, 0.0, draw, u)[1:])
    }
    return sorted((length, *plane) for length, _ in lengths for plane in planes)


def test_paper_block_sizes():
    # area = floor(196 * 0.15) = 29; height / width from 0.75 to 1.5.
    sizes = [(8, 5, 5), (8, 5, 6), (8, 6, 4), (8, 6, 5), (8, 7, 4)]
    assert block_sizes(SHORT_RANGE, GRID) == sizes


@pytest.mark.parametrize(
    ("spec", "grid"),
    [
        (SHORT_RANGE, GRID),
        (MultiBlock(2, (0.7, 0.7)), GRID),
        (MultiBlock(1, (0.05, 0.3), (0.2, 0.9), (0.4, 2.5)), (5, 6, 9)),
        (MultiBlock(1, (0.05, 0.5), (0.1, 1.0), (1.0, 1.0)), (3, 7, 4)),
    ],
)
def test_block_sizes_are_those_that_are_drawn(spec, grid):
    sampler = MaskSampler([spec], grid, truncate="none", num_threads=1)
    drawn = {tuple(sampler.sample(step, [0]).block_sizes[0].tolist()) for step in range(6000)}
    drawable = set(block_sizes(spec, grid))
    assert drawn <= drawable
    # A size may be too rare to have come up: those that did must be nearly all of the probability.
    ends = np.linspace(0, 1, 41)[:-1]
    dense = {spec.block_size(grid, *draws) for draws in itertools.product(ends, repeat=3)}
    assert dense <= drawable
    assert len(drawable - drawn - dense) <= 0.2 * len(drawable)


def test_the_upper_end_of_a_scale_is_not_drawn():
    # [0.25, 1) of 4 frames: 4 frames would need a draw of exactly 1.
    spec = MultiBlock(1, (0.5, 0.5), temporal_scale=(0.25, 1.0))
    assert {size[0] for size in block_sizes(spec, (4, 4, 4))} == {1, 2, 3}
    # A range of one point is always that point.
    spec = MultiBlock(1, (0.5, 0.5), temporal_scale=(1.0, 1.0))
    assert {size[0] for size in block_sizes(spec, (4, 4, 4))} == {4}


@settings(max_examples=60, deadline=None)
@given(
    spatial=st.tuples(st.floats(0.01, 1.0), st.floats(0.01, 1.0)).map(sorted),
    temporal=st.tuples(st.floats(0.01, 1.0), st.floats(0.01, 1.0)).map(sorted),
    aspect=st.tuples(st.floats(0.2, 5.0), st.floats(0.2, 5.0)).map(sorted),
    keep=st.floats(0.01, 1.0),
    grid=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)),
)
def test_check_agrees_with_trying_every_position(spatial, temporal, aspect, keep, grid):
    spec = MultiBlock(1, tuple(spatial), tuple(temporal), tuple(aspect), keep)

    def possible(size):
        barred = np.zeros(grid, dtype=bool)
        barred[max(1, math.floor(grid[0] * keep)) :] = True
        corners = (range(whole - part + 1) for whole, part in zip(grid, size, strict=True))
        for t, y, x in itertools.product(*corners):
            target = barred.copy()
            target[t : t + size[0], y : y + size[1], x : x + size[2]] = True
            if target.any() and not target.all():
                return True
        return False

    rejected = False
    try:
        spec.check(grid)
    except ValueError:
        rejected = True
    assert rejected == (not all(map(possible, block_sizes(spec, grid))))


@settings(max_examples=100, deadline=None)
@given(
    spatial=st.tuples(st.floats(0.02, 0.1), st.floats(0.85, 1.0)),
    aspect=st.tuples(st.floats(0.05, 1.0), st.floats(1.0, 20.0)),
    grid=st.tuples(st.integers(1, 2), st.integers(5, 12), st.integers(5, 12)),
)
def test_check_agrees_with_every_size_on_larger_grids(spatial, aspect, grid):
    """Frames that only some of the areas and aspect ratios fill, or leave empty."""
    for spec in (
        MultiBlock(1, (0.5, spatial[1]), aspect_ratio=aspect),  # may fill the grid
        MultiBlock(1, (spatial[0], 0.5), aspect_ratio=aspect),  # may be empty
    ):
        sizes = block_sizes(spec, grid)
        possible = grid not in sizes and not any(0 in size for size in sizes)
        try:
            spec.check(grid)
        except ValueError:
            assert not possible
        else:
            assert possible


def test_checking_a_large_grid_tries_few_sizes(monkeypatch):
    sizes = Mock(side_effect=MultiBlock._sides, autospec=True)
    monkeypatch.setattr(MultiBlock, "_sides", lambda *arguments: sizes(*arguments))
    MultiBlock(8, (0.01, 0.9), (0.1, 1.0), (0.1, 5.0)).check((16, 1024, 1024))
    assert 0 < sizes.call_count < 10


def test_full_frames_are_fine_where_the_block_is_shorter_than_the_clip():
    full = {"num_blocks": 3, "spatial_scale": (1.0, 1.0), "aspect_ratio": (1.0, 1.0)}
    MultiBlock(**full, temporal_scale=(0.5, 0.5)).check((4, 6, 6))
    # Even if only frame 0 may be context: the blocks can start after it.
    MultiBlock(**full, temporal_scale=(0.5, 0.9), max_temporal_keep=0.1).check((4, 6, 6))
    with pytest.raises(ValueError, match="fill the whole grid 4x6x6 and leave no context"):
        MultiBlock(**full).check((4, 6, 6))
    with pytest.raises(ValueError, match="fill the whole grid"):
        MultiBlock(**full, temporal_scale=(0.1, 1.0)).check((1, 6, 6))


def test_empty_blocks_are_fine_where_barred_frames_are_targets():
    MultiBlock(1, (0.01, 0.01), max_temporal_keep=0.5).check((4, 4, 4))
    with pytest.raises(ValueError, match="size 4x0x0 and give no target"):
        MultiBlock(1, (0.01, 0.01)).check((4, 4, 4))
    with pytest.raises(ValueError, match="give no target"):
        MultiBlock(1, (0.1, 0.1), aspect_ratio=(9.0, 9.0)).check((4, 4, 4))


def test_the_sampler_rejects_such_specs_and_names_them():
    with pytest.raises(ValueError, match=r"^specs\[1\]: found that a block can fill the whole"):
        MaskSampler([SHORT_RANGE, MultiBlock(1, (1.0, 1.0), aspect_ratio=(1.0, 1.0))])
