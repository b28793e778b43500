"""Each bad argument gives one sentence, and the arguments that the extension itself rejects."""

import math

import numpy as np
import pytest
import torch

from vjepa_fast.masks import (
    MaskSampler,
    Mixture,
    MultiBlock,
    RandomTokens,
    RandomTube,
    ReferenceSampler,
    _sampler,
)

GRID = (8, 14, 14)
SHORT_RANGE = MultiBlock(num_blocks=8, spatial_scale=(0.15, 0.15))


def test_specs_accept_what_json_gives():
    assert MultiBlock(8, [0.15, 0.15]) == SHORT_RANGE
    assert hash(MultiBlock(8, [0.15, 0.15])) == hash(SHORT_RANGE)
    assert MultiBlock(1, [1, 1]).spatial_scale == (1.0, 1.0)


BAD_FIELDS = [
    {"num_blocks": 0},
    {"num_blocks": 2.0},
    {"num_blocks": True},
    {"num_blocks": "8"},
    {"spatial_scale": 0.15},
    {"spatial_scale": (0.15,)},
    {"spatial_scale": (0.0, 0.15)},
    {"spatial_scale": (0.3, 0.15)},
    {"spatial_scale": (0.3, 1.01)},
    {"spatial_scale": (0.3, math.nan)},
    {"spatial_scale": ("a", "b")},
    {"temporal_scale": (0.5, 2)},
    {"temporal_scale": (-0.5, 1)},
    {"aspect_ratio": (0, 1)},
    {"aspect_ratio": (1.5, 0.75)},
    {"aspect_ratio": (1.5, math.inf)},
    {"aspect_ratio": (1e-320, 1.5)},
    {"aspect_ratio": (1, 1e308)},
    {"aspect_ratio": (1, 10**400)},
    {"max_temporal_keep": 0.0},
    {"max_temporal_keep": 1.5},
    {"max_temporal_keep": math.nan},
    {"max_temporal_keep": None},
    {"max_keep": 0},
    {"max_keep": 10.0},
]


@pytest.mark.parametrize("fields", BAD_FIELDS, ids=str)
def test_bad_fields_are_rejected_by_name(fields):
    (name,) = fields
    with pytest.raises(ValueError) as caught:
        MultiBlock(**({"num_blocks": 8, "spatial_scale": (0.15, 0.15)} | fields))
    assert_sentence(caught.value, name)


BAD_CALLS = [
    ("specs", lambda: MaskSampler([])),
    ("specs", lambda: MaskSampler([{"num_blocks": 8}])),
    ("grid", lambda: MaskSampler([SHORT_RANGE], grid=(8, 14))),
    ("grid", lambda: MaskSampler([SHORT_RANGE], grid=(8, 14, 0))),
    ("grid", lambda: MaskSampler([SHORT_RANGE], grid=(8, 14, 14.0))),
    ("grid", lambda: MaskSampler([SHORT_RANGE], grid=14)),
    ("grid", lambda: MaskSampler([SHORT_RANGE], grid=(2**11, 2**10, 2**10))),
    ("seed", lambda: MaskSampler([SHORT_RANGE], seed=-1)),
    ("seed", lambda: MaskSampler([SHORT_RANGE], seed=2**64)),
    ("truncate", lambda: MaskSampler([SHORT_RANGE], truncate="group")),
    ("truncate_group", lambda: MaskSampler([SHORT_RANGE], truncate_group=0)),
    ("round_to", lambda: MaskSampler([SHORT_RANGE], round_to=0)),
    ("complement", lambda: MaskSampler([SHORT_RANGE], complement="both")),
    (
        "complement",
        lambda: MaskSampler([MultiBlock(2, (0.3, 0.3), max_keep=5)], complement="context"),
    ),
    ("ratio", lambda: RandomTube(1.0)),
    ("ratio", lambda: RandomTokens("half")),
    ("mixture specs", lambda: Mixture([])),
    ("mixture specs", lambda: Mixture([Mixture([SHORT_RANGE])])),
    ("mixture weights", lambda: Mixture([SHORT_RANGE], [0])),
    ("mixture weights", lambda: Mixture([SHORT_RANGE], [1, 1])),
    ("mixture weights", lambda: Mixture([SHORT_RANGE] * 3, [1e308, 1e308, 1])),
    ("mixture weights", lambda: Mixture([SHORT_RANGE], [10**400])),
    ("spec", lambda: MaskSampler([SHORT_RANGE]).sample(0, [0]).context(1)),
    ("spec", lambda: MaskSampler([SHORT_RANGE]).sample(0, [0]).target(-1)),
    ("spec", lambda: MaskSampler([SHORT_RANGE]).sample(0, [0]).target(0.0)),
    (
        "sample ids: found 2199023255552 bits",
        lambda: MaskSampler([SHORT_RANGE], truncate_group=2**30).sample(0, [0]),
    ),
    (
        "sample ids: found 2147483648 tokens",
        lambda: MaskSampler([SHORT_RANGE], (1024,) * 3).sample(0, [0, 1]),
    ),
    ("num_threads", lambda: MaskSampler([SHORT_RANGE], num_threads=-1)),
    ("step", lambda: MaskSampler([SHORT_RANGE]).sample(-1, [0])),
    ("step", lambda: MaskSampler([SHORT_RANGE]).sample(1.0, [0])),
    ("step", lambda: MaskSampler([SHORT_RANGE]).sample(2**63, [0])),
    ("sample ids", lambda: MaskSampler([SHORT_RANGE]).sample(0, [])),
    ("sample ids", lambda: MaskSampler([SHORT_RANGE]).sample(0, 3)),
    ("sample ids", lambda: MaskSampler([SHORT_RANGE]).sample(0, [[0]])),
    ("sample ids", lambda: MaskSampler([SHORT_RANGE]).sample(0, np.zeros((4, 4), int))),
    ("sample ids", lambda: MaskSampler([SHORT_RANGE]).sample(0, [[0], [1, 2]])),
    ("sample ids", lambda: MaskSampler([SHORT_RANGE]).sample(0, torch.zeros(3, device="meta"))),
    ("sample ids", lambda: MaskSampler([SHORT_RANGE]).sample(0, [0.5])),
    ("sample ids", lambda: MaskSampler([SHORT_RANGE]).sample(0, [0, -1])),
    ("sample ids", lambda: MaskSampler([SHORT_RANGE]).sample(0, [2**62])),
    ("sample ids", lambda: MaskSampler([SHORT_RANGE]).sample(0, [2**63])),
    ("sample ids", lambda: MaskSampler([SHORT_RANGE]).sample(0, [2**64])),
    ("sample ids", lambda: ReferenceSampler([SHORT_RANGE]).sample(0, [2**62])),
    ("block sizes", lambda: MaskSampler([SHORT_RANGE]).sample(0, [0], [])),
    ("block sizes", lambda: MaskSampler([SHORT_RANGE]).sample(0, [0], [(8, 5)])),
    ("block sizes", lambda: MaskSampler([SHORT_RANGE]).sample(0, [0], [(8, 5, 5.0)])),
    ("block sizes", lambda: MaskSampler([SHORT_RANGE] * 2).sample(0, [0], [(8, 5, 5), (8, 5)])),
    ("block sizes", lambda: MaskSampler([SHORT_RANGE]).sample(0, [0], [(8, 0, 5)])),
    ("block sizes", lambda: MaskSampler([SHORT_RANGE]).sample(0, [0], [(8, 5, 0)])),
    ("block sizes", lambda: MaskSampler([RandomTube(0.5)]).sample(0, [0], [(1, 1, 1)])),
    ("block sizes", lambda: MaskSampler([SHORT_RANGE]).sample(0, [0], [(8, 5, 15)])),
    ("block sizes", lambda: MaskSampler([SHORT_RANGE]).sample(0, [0], [(0, 5, 5)])),
    ("block sizes", lambda: MaskSampler([SHORT_RANGE]).sample(0, [0], [(8, 5, 5)] * 2)),
]


@pytest.mark.parametrize(("name", "call"), BAD_CALLS)
def test_bad_arguments_are_rejected_by_name(name, call):
    with pytest.raises(ValueError) as caught:
        call()
    assert_sentence(caught.value, name)


def assert_sentence(error, name):
    """One sentence: where, what was found, what was expected, what to do."""
    message = str(error)
    assert message.startswith(name if ": found" in name else f"{name}: found ")
    assert ", expected" in message
    assert "; give" in message
    assert "\n" not in message


BLOCKS = {"num_blocks": 8, "max_keep": None, "kind": "blocks", "part": 0, "context_frames": 8}
BLOCKS |= dict.fromkeys(("spatial_scale", "temporal_scale"), (0.15, 0.15))
BLOCKS |= {"aspect_ratio": (0.75, 1.5)}
TUBES = {"num_kept": 20, "max_keep": None, "kind": "tubes", "part": 0, "context_frames": 8}


def raw_sample(fields=BLOCKS, cumulative=(1.0,), ids=(0,), step=0, sizes=None, **settings):
    """A call of the extension, which only MaskSampler makes."""
    defaults = {
        "specs": [(list(cumulative), [dict(fields)])],
        "grid": GRID,
        "seed": 0,
        "truncate": "batch",
        "truncate_group": 24,
        "round_to": 1,
        "complement": "",
        "num_threads": 1,
    }
    sampler = _sampler.Sampler(**(defaults | settings))
    return sampler.sample(step, np.array(ids, dtype=np.int64), sizes)


@pytest.mark.parametrize(
    "bad",
    [
        {"specs": []},
        {"grid": (8, 0, 14)},
        {"grid": (2**20, 2**20, 2**20)},
        {"ids": []},
        {"ids": [[1]]},
        {"step": -1},
        {"truncate": "some"},
        {"truncate_group": 0},
        {"round_to": 0},
        {"complement": "all"},
        {"cumulative": (0.5, 0.5)},
        {"sizes": np.array([(8, 5, 15)])},
        {"sizes": np.array([(8, -5, 5)])},
        {"sizes": np.array([(8, 5, 5)] * 2)},
        {"fields": BLOCKS | {"num_blocks": 0}},
        {"fields": BLOCKS | {"kind": "block"}},
        {"fields": BLOCKS | {"part": 2**24}},
        {"fields": BLOCKS | {"context_frames": 9}},
        {"fields": BLOCKS | {"spatial_scale": (0.5, 1.5)}},
        {"fields": BLOCKS | {"aspect_ratio": (0.0, 1.5)}},
        {"fields": BLOCKS | {"aspect_ratio": (1.0, math.inf)}},
        {"fields": BLOCKS | {"max_keep": 0}},
        {"fields": TUBES | {"num_kept": 196}},
        {"fields": TUBES | {"num_kept": 0}},
        {"fields": TUBES | {"context_frames": 4}},
    ],
    ids=str,
)
def test_the_extension_itself_rejects_what_would_harm_memory(bad):
    raw_sample()
    raw_sample(TUBES)
    with pytest.raises(ValueError, match="the mask sampler expected"):
        raw_sample(**bad)
