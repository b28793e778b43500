"""Random tubes, random tokens, mixtures, random truncation, rounding, complements, images."""

import math

import numpy as np
import pytest
import torch

from tests.helpers.masks import clip_tokens
from vjepa_fast.masks import MaskSampler, Mixture, MultiBlock, RandomTokens, RandomTube

GRID = (8, 14, 14)
SHORT_RANGE = MultiBlock(num_blocks=8, spatial_scale=(0.15, 0.15))
LONG_RANGE = MultiBlock(num_blocks=2, spatial_scale=(0.7, 0.7))


def contexts(masks):
    return clip_tokens(masks.context_tokens, masks.context_seqlens)


def targets(masks):
    return clip_tokens(masks.target_tokens, masks.target_seqlens)


def frequencies(masks):
    """How often each token is context under the only spec."""
    clips = masks.context_seqlens.shape[1]
    return np.bincount(masks.context_tokens, minlength=masks.num_tokens) / clips


@pytest.mark.parametrize(
    ("grid", "ratio", "kept"),
    [
        (GRID, 0.25, 147),
        (GRID, 0.75, 49),
        (GRID, 0.9, 19),  # of 19.6
        ((3, 5, 9), 0.75, 11),  # of 11.25
        ((2, 10, 10), 0.9, 10),  # though 100 * (1 - 0.9) is 9.999999999999998 in floating point
        ((1, 2, 5), 0.9, 1),
        ((1, 7, 4), 0.25, 21),
    ],
    ids=str,
)
def test_a_random_tube_keeps_the_same_positions_in_every_frame(grid, ratio, kept):
    masks = MaskSampler([RandomTube(ratio)], grid, truncate="none").sample(0, range(2000))
    frame = grid[1] * grid[2]
    for row in contexts(masks)[0][:100]:
        positions = {token for token in row if token < frame}
        assert len(positions) == kept
        assert row == [
            t * frame + position for t in range(grid[0]) for position in sorted(positions)
        ]
    p = kept / frame
    assert np.abs(frequencies(masks) - p).max() < 5 * math.sqrt(p * (1 - p) / 2000)


@pytest.mark.parametrize(("ratio", "kept"), [(0.25, 90), (0.75, 30), (0.9, 12), (0.95, 6)])
def test_random_tokens_are_spread_evenly_and_one_by_one(ratio, kept):
    grid = (4, 6, 5)
    masks = MaskSampler([RandomTokens(ratio)], grid, truncate="none").sample(0, range(4000))
    assert (masks.context_seqlens == kept).all()
    p = kept / 120
    assert np.abs(frequencies(masks) - p).max() < 5 * math.sqrt(p * (1 - p) / 4000)
    # Tokens are independent, also at one position of adjacent frames.
    together = np.mean([{0, 30} <= set(row) for row in contexts(masks)[0]])
    expected = p * (kept - 1) / 119
    assert abs(together - expected) < 5 * math.sqrt(expected / 4000)


def test_a_single_block_is_one_rectangle_of_targets():
    masks = MaskSampler([MultiBlock(1, (0.3, 0.3))], truncate="none").sample(4, range(50))
    t, height, width = masks.block_sizes[0].tolist()
    for row in targets(masks)[0]:
        y, x = np.divmod(np.array(row) % 196, 14)
        assert len(row) == t * height * width
        assert (y.max() - y.min() + 1, x.max() - x.min() + 1) == (height, width)


def test_causal_masks_bar_the_last_frames():
    causal = MultiBlock(6, (0.15, 0.15), max_temporal_keep=0.75)
    masks = MaskSampler([causal], truncate="none").sample(0, range(50))
    assert max(map(max, contexts(masks)[0])) < 6 * 196
    for row in targets(masks)[0]:
        assert set(range(6 * 196, 8 * 196)) <= set(row)


def test_a_mixture_draws_its_specs_as_often_as_their_weights_say():
    one, two = MultiBlock(1, (0.3, 0.3)), RandomTube(0.9)
    mixture = Mixture([one, two, RandomTokens(0.5)], [1, 2, 5])
    masks = MaskSampler([mixture], truncate="none").sample(0, range(8000))
    lengths = masks.context_seqlens[0]
    tubes, tokens = (lengths == 19 * 8).sum() / 8000, (lengths == 784).sum() / 8000
    assert abs(tubes - 0.25) < 0.025 and abs(tokens - 0.625) < 0.03
    t, height, width = masks.block_sizes[0].tolist()
    assert (lengths == 1568 - t * height * width).sum() / 8000 + tubes + tokens == 1
    assert masks.block_sizes[1:].tolist() == [[0, 0, 0]] * 2


def test_a_mixture_shares_no_random_words_with_its_neighbours():
    block = MultiBlock(2, (0.3, 0.3))
    sampler = MaskSampler([block, Mixture([block, block]), Mixture([block])], truncate="none")
    masks = sampler.sample(0, range(30), block_sizes=[(8, 5, 5)] * 4)
    plain, mixed, alone = contexts(masks)
    assert not any(a in (b, c) or b == c for a, b, c in zip(plain, mixed, alone, strict=True))


def test_specs_of_every_kind_side_by_side():
    specs = [SHORT_RANGE, RandomTube(0.9), Mixture([LONG_RANGE, RandomTokens(0.9)])]
    masks = MaskSampler(specs, truncate_group=8).sample(0, range(8))
    for m in range(3):
        assert masks.context(m).shape[0] == masks.target(m).shape[0] == 8
    # Each spec's masks are those that it gives without the others.
    assert torch.equal(
        masks.context(0),
        MaskSampler([SHORT_RANGE], truncate_group=8).sample(0, range(8)).context(0),
    )


def test_random_truncation_is_as_short_and_unbiased():
    ids = range(24 * 100)
    sizes = [(8, 5, 5)]
    whole = MaskSampler([SHORT_RANGE], truncate="none").sample(0, ids, sizes)
    raster = MaskSampler([SHORT_RANGE], truncate="batch").sample(0, ids, sizes)
    random = MaskSampler([SHORT_RANGE], truncate="batch-random").sample(0, ids, sizes)
    assert torch.equal(raster.context_seqlens, random.context_seqlens)
    assert torch.equal(raster.target_seqlens, random.target_seqlens)
    for side, name in ((contexts, "context_tokens"), (targets, "target_tokens")):
        for row, full in zip(side(random)[0], side(whole)[0], strict=True):
            assert set(row) <= set(full)
        last = {  # fraction of tokens in the last frame, 1/8 before truncation
            kind: (getattr(masks, name) >= 7 * 196).double().mean().item()
            for kind, masks in (("whole", whole), ("raster", raster), ("random", random))
        }
        assert abs(last["whole"] - 1 / 8) < 1e-9
        assert abs(last["random"] - 1 / 8) < 0.003
        assert last["raster"] < 0.1


@pytest.mark.parametrize("truncate", ["batch", "batch-random", "none"])
def test_rounded_lengths_are_multiples_just_below(truncate):
    plain = MaskSampler([SHORT_RANGE, LONG_RANGE], truncate=truncate).sample(1, range(48))
    rounded = MaskSampler([SHORT_RANGE, LONG_RANGE], truncate=truncate, round_to=32).sample(
        1, range(48)
    )
    for name in ("context_seqlens", "target_seqlens"):
        before, after = getattr(plain, name), getattr(rounded, name)
        assert torch.equal(after, torch.where(before < 32, before, before - before % 32))
    assert len(rounded.context_seqlens.unique()) <= len(plain.context_seqlens.unique())


def test_lengths_below_the_multiple_stay():
    masks = MaskSampler([RandomTokens(0.9)], (1, 5, 5), round_to=8).sample(0, range(24))
    assert masks.context(0).shape == (24, 2) and masks.target(0).shape == (24, 16)


@pytest.mark.parametrize("truncate", ["batch", "batch-random", "none"])
def test_complements_fill_the_clip(truncate):
    specs, ids = [SHORT_RANGE, Mixture([LONG_RANGE, RandomTube(0.8)])], range(48)
    truncated = MaskSampler(specs, truncate=truncate, round_to=8).sample(0, ids)
    for complement, kept, filled in (
        ("target", contexts, targets),
        ("context", targets, contexts),
    ):
        sampler = MaskSampler(specs, truncate=truncate, round_to=8, complement=complement)
        masks = sampler.sample(0, ids)
        assert kept(masks) == kept(truncated)
        for m in range(2):
            for row, rest in zip(kept(masks)[m], filled(masks)[m], strict=True):
                assert rest == sorted(set(range(1568)) - set(row))
        if truncate != "none":
            assert len(masks.context_seqlens[0, :24].unique()) == 1
            assert len(masks.target_seqlens[0, :24].unique()) == 1


def test_the_target_complement_takes_what_max_keep_leaves():
    spec = MultiBlock(8, (0.15, 0.15), max_keep=50)
    masks = MaskSampler([spec], complement="target").sample(0, range(24), [(8, 5, 5)])
    assert masks.context(0).shape == (24, 50) and masks.target(0).shape == (24, 1518)


@pytest.mark.parametrize("grid", [(1, 14, 14), (1, 5, 16)], ids=str)
def test_images(grid):
    specs = [MultiBlock(4, (0.15, 0.2)), RandomTube(0.75), RandomTokens(0.75)]
    masks = MaskSampler(specs, grid, truncate="none").sample(0, range(200))
    num_tokens = grid[1] * grid[2]
    assert masks.num_tokens == num_tokens and masks.block_sizes[0, 0] == 1
    for m in range(3):
        for row, rest in zip(contexts(masks)[m], targets(masks)[m], strict=True):
            assert sorted(row + rest) == list(range(num_tokens))


def test_grids_that_are_not_square():
    """A block may be as tall or as wide as the grid, and reaches every position."""
    grid = (4, 3, 40)
    masks = MaskSampler([MultiBlock(1, (0.3, 0.3))], grid, truncate="none").sample(0, range(4000))
    _, height, width = masks.block_sizes[0].tolist()
    assert height == 3 and 4 <= width <= 7
    hidden = 1 - frequencies(masks).reshape(grid)
    positions = 40 - width + 1
    expected = [min(x + 1, width, 40 - x, positions) / positions for x in range(40)]
    assert np.abs(hidden - expected).max() < 0.05


def test_offsets_are_those_of_the_lengths():
    masks = MaskSampler([SHORT_RANGE, LONG_RANGE], truncate="none").sample(0, range(5))
    for seqlens, offsets in (
        (masks.context_seqlens, masks.context_cu_seqlens),
        (masks.target_seqlens, masks.target_cu_seqlens),
    ):
        assert offsets.dtype == torch.int32
        assert offsets.tolist() == [0, *seqlens.flatten().cumsum(0).tolist()]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (RandomTube(0.999), r"specs\[0\]: ratio: found 0.999, which leaves 0 of the 196 tokens"),
        (RandomTokens(0.9999), "leaves 0 of the 1568 tokens"),
        (Mixture([SHORT_RANGE, RandomTube(0.999)]), "spec 1 of the mixture: ratio: found"),
        (Mixture([MultiBlock(1, (1.0, 1.0), aspect_ratio=(1, 1))]), "can fill the whole grid"),
    ],
)
def test_impossible_specs_are_rejected_when_the_sampler_is_built(spec, message):
    with pytest.raises(ValueError, match=message):
        MaskSampler([spec])
