"""The C++ mask sampler against its Python reference, bit for bit, over random configurations."""

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.helpers.masks import EVERY_KIND, assert_same, clip_tokens
from vjepa_fast.masks import (
    MaskSampler,
    Mixture,
    MultiBlock,
    RandomTokens,
    RandomTube,
    ReferenceSampler,
    _sampler,
    philox,
)
from vjepa_fast.masks.specs import variants


def scale(least):
    ends = st.floats(least, 1.0, exclude_min=least == 0.0)
    return st.tuples(ends, ends).map(sorted).map(tuple)


multi_blocks = st.builds(
    MultiBlock,
    num_blocks=st.integers(1, 5),
    spatial_scale=scale(0.02),
    temporal_scale=scale(0.02) | st.just((1.0, 1.0)),
    aspect_ratio=st.tuples(st.floats(0.3, 1.0), st.floats(1.0, 3.0)),
    max_temporal_keep=st.floats(0.01, 1.0) | st.just(1.0),
    max_keep=st.none() | st.integers(1, 40),
)
ratios = st.floats(0.05, 0.95)
plain = multi_blocks | st.builds(RandomTube, ratios) | st.builds(RandomTokens, ratios)
mixtures = st.lists(st.tuples(plain, st.floats(0.1, 5.0)), min_size=1, max_size=3).map(
    lambda pairs: Mixture(*zip(*pairs, strict=True))
)
grids = st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9))
options = st.fixed_dictionaries(
    {
        "truncate": st.sampled_from(["batch", "batch-random", "none"]),
        "truncate_group": st.integers(1, 4),
        "round_to": st.none() | st.integers(1, 20),
        "complement": st.sampled_from([None, None, "target", "context"]),
    }
)
configurations = {
    "specs": st.lists(plain | mixtures, min_size=1, max_size=3),
    "grid": grids,
    "seed": st.integers(0, 2**64 - 1),
    "step": st.integers(0, 2**63 - 1),
    "ids": st.lists(st.integers(0, 40) | st.integers(0, 2**62 - 1), min_size=1, max_size=4),
    "options": options,
}
hypothesis_settings = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
    derandomize=True,
)


def outcome(sample, *arguments):
    """The masks, or the error message."""
    try:
        return sample(*arguments)
    except ValueError as error:
        return str(error)


def check_configuration(specs, grid, seed, step, ids, options):
    try:
        sampler = MaskSampler(specs, grid, seed, **options)
    except ValueError:
        assume(False)
    twin = ReferenceSampler(specs, grid, seed, **options)
    check_rectangles(*(outcome(side.sample_rectangles, step, ids) for side in (sampler, twin)))
    masks, expected = outcome(sampler.sample, step, ids), outcome(twin.sample, step, ids)
    if isinstance(expected, str):
        assert masks == expected
        return
    assert_same(masks, expected)
    assert masks.context_tokens.dtype == masks.target_tokens.dtype == torch.int64
    check_promises(masks, specs, grid, options)


def check_rectangles(found, expected):
    if isinstance(expected, str):
        assert found == expected
        return
    for side, other in zip(found, expected, strict=True):
        for left, right in zip(side, other, strict=True):
            assert left.dtype == right.dtype == torch.int64
            assert torch.equal(left, right)


def check_promises(masks, specs, grid, options):
    """Properties of every mask, whatever its spec."""
    contexts = clip_tokens(masks.context_tokens, masks.context_seqlens)
    targets = clip_tokens(masks.target_tokens, masks.target_seqlens)
    for m, spec in enumerate(specs):
        blocks = all(isinstance(variant, MultiBlock) for variant in variants(spec))
        frames = max(v.context_frames(grid) for v in variants(spec)) if blocks else grid[0]
        caps = [v.max_keep if isinstance(v, MultiBlock) else None for v in variants(spec)]
        cap = masks.num_tokens if None in caps else max(caps)
        filled = options["complement"] is not None or (
            options["truncate"] == "none" and options["round_to"] in (None, 1) and not any(caps)
        )
        for context, target in zip(contexts[m], targets[m], strict=True):
            assert context == sorted(set(context)) and target == sorted(set(target))
            assert context and target and not set(context) & set(target)
            assert max(context) < frames * grid[1] * grid[2]
            assert len(context) <= cap
            if filled:
                assert sorted(context + target) == list(range(masks.num_tokens))


@settings(hypothesis_settings, max_examples=400)
@given(**configurations)
def test_reference_agrees_bit_for_bit(**configuration):
    check_configuration(**configuration)


@pytest.mark.slow
@settings(hypothesis_settings, max_examples=10_000)
@given(**configurations)
def test_reference_agrees_bit_for_bit_ten_thousand_times(**configuration):
    check_configuration(**configuration)


@pytest.mark.parametrize("truncate", ["batch", "batch-random", "none"])
@pytest.mark.parametrize("complement", [None, "target"])
def test_reference_agrees_on_the_real_grid(truncate, complement):
    options = {"truncate": truncate, "complement": complement, "truncate_group": 6, "round_to": 16}
    ids = [100, 5, 26, 5, 2**40]
    assert_same(
        MaskSampler(EVERY_KIND, **options).sample(3, ids),
        ReferenceSampler(EVERY_KIND, **options).sample(3, ids),
    )


def test_reference_agrees_on_replayed_sizes():
    # The third has no tokens: the frames that its spec bars from the context are targets.
    sizes = [(3, 4, 5), (8, 14, 13), (8, 0, 1), (0, 0, 0), (0, 0, 0)]
    sizes += [(2, 14, 14), (0, 0, 0), (1, 1, 3)]
    masks = MaskSampler(EVERY_KIND).sample(0, [1, 2], block_sizes=sizes)
    assert masks.block_sizes.tolist() == [list(size) for size in sizes]
    assert_same(masks, ReferenceSampler(EVERY_KIND).sample(0, [1, 2], block_sizes=sizes))


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**64 - 1),
    stream=st.integers(0, 2**32 - 1),
    index=st.integers(0, 2**63 - 1),
    bounds=st.lists(st.none() | st.integers(1, 2**32 - 1), max_size=12),
)
def test_sequences_agree(seed, stream, index, bounds):
    ours = _sampler.PhiloxSequence(seed, stream, index)
    twin = philox.PhiloxSequence(seed, stream, index)
    for bound in bounds:
        if bound is None:
            assert ours.uniform() == twin.uniform()
        else:
            assert ours.bounded(bound) == twin.bounded(bound)
    assert ours.word() == twin.word()
