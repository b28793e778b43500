"""Configs with other mask strategies and truncations, and the errors for bad ones."""

from __future__ import annotations

import json

import pytest

from tests.helpers.paths import REPOSITORY
from vjepa_fast.commands.info import info_text
from vjepa_fast.config import load_config, parse_config
from vjepa_fast.errors import UserError
from vjepa_fast.masks import Mixture, MultiBlock, RandomTokens, RandomTube
from vjepa_fast.training.batches import make_sampler

PAPER = REPOSITORY / "configs" / "vitl16.json"
BLOCKS = {"num_blocks": 8, "spatial_scale": [0.15, 0.15]}
TUBES = {"strategy": "random_tube", "ratio": 0.9}
TOKENS = {"strategy": "random_tokens", "ratio": 0.5}


def mixture(*specs, **keys):
    return {"strategy": "mixture", "specs": list(specs), **keys}


def load(specs, *overrides):
    return load_config(PAPER, [f"masks.specs={json.dumps(specs)}", *overrides])


def test_every_strategy_reaches_the_sampler():
    specs = [BLOCKS, BLOCKS | {"strategy": "multi_block"}, TUBES, TOKENS]
    config = load([*specs, mixture(BLOCKS, TUBES, TOKENS, weights=[1, 2, 3])])
    blocks, tubes, tokens = MultiBlock(8, (0.15, 0.15)), RandomTube(0.9), RandomTokens(0.5)
    assert make_sampler(config).specs == (
        blocks,
        blocks,
        tubes,
        tokens,
        Mixture((blocks, tubes, tokens), (1.0, 2.0, 3.0)),
    )
    written = json.loads(json.dumps(config.model_dump(mode="json")))
    assert parse_config(written) == config


def test_truncation_rounding_and_complement_reach_the_sampler():
    sampler = make_sampler(load([BLOCKS]))
    assert (sampler.truncate, sampler.round_to, sampler.complement) == ("batch", None, None)
    keys = ["masks.truncate=batch-random", "masks.round_to=16", "masks.complement=target"]
    sampler = make_sampler(load([BLOCKS], *keys))
    assert (sampler.truncate, sampler.round_to, sampler.complement) == (
        "batch-random",
        16,
        "target",
    )
    masks = sampler.sample(0, range(24))
    assert masks.context(0).shape[1] + masks.target(0).shape[1] == 1568


def test_multi_block_is_written_as_before():
    """Checkpoints hold the config: one of before these strategies must still compare equal."""
    written = load([BLOCKS]).model_dump(mode="json")["masks"]
    assert set(written["specs"][0]) == set(MultiBlock.__dataclass_fields__)
    assert {key for key, value in written.items() if value is not None} == {
        "specs",
        "truncate",
        "truncate_group",
    }


def test_info_names_every_strategy():
    text = info_text(load([BLOCKS, TUBES, TOKENS, mixture(BLOCKS, TUBES)]))
    for name in ("8 blocks", "random tube 0.9", "random tokens 0.5", "mixture of 2"):
        assert f"({name})" in text


@pytest.mark.parametrize(
    ("overrides", "key", "rest"),
    [
        (
            ['masks.specs[0]={"strategy": "tube", "ratio": 0.5}'],
            "masks.specs[0]",
            'found strategy "tube", expected one of multi_block, random_tube, random_tokens, '
            "mixture; write e.g.",
        ),
        (
            [f"masks.specs[0]={json.dumps(TUBES | {'ratio': 1.0})}"],
            "masks.specs[0].ratio",
            "found 1.0, expected a number below 1; write e.g. 0.9",
        ),
        (
            ['masks.specs[0]={"strategy": "random_tube"}'],
            "masks.specs[0].ratio",
            'found nothing, expected this key; add it, e.g. "ratio": 0.9',
        ),
        (
            [f"masks.specs[0]={json.dumps(TUBES | {'num_blocks': 1})}"],
            "masks.specs[0].num_blocks",
            "found an unknown key, expected one of strategy, ratio",
        ),
        (
            [f"masks.specs[0]={json.dumps(BLOCKS | {'ratio': 0.5})}"],
            "masks.specs[0].ratio",
            "found an unknown key, expected one of num_blocks, spatial_scale, temporal_scale, "
            'aspect_ratio, max_temporal_keep, max_keep; set "strategy" to one that has this key, '
            "or remove it",
        ),
        (
            [f"masks.specs[0]={json.dumps(mixture(BLOCKS, mixture(BLOCKS)))}"],
            "masks.specs[0].specs[1]",
            'found strategy "mixture", expected one of multi_block, random_tube, random_tokens;',
        ),
        (
            [f"masks.specs[0]={json.dumps(mixture(BLOCKS, TUBES | {'ratio': '0.5'}))}"],
            "masks.specs[0].specs[1].ratio",
            'found "0.5", expected a number; write 0.5 without quotes',
        ),
        (
            [f"masks.specs[0]={json.dumps(mixture(BLOCKS, weights=[1, 2]))}"],
            "masks.specs[0]",
            "mixture weights: found [1.0, 2.0], expected 1 positive numbers",
        ),
        (
            [f"masks.specs[0]={json.dumps(mixture())}"],
            "masks.specs[0].specs",
            "found [], expected at least 1 item",
        ),
        (
            [f"masks.specs[0]={json.dumps(TUBES | {'ratio': 0.999})}"],
            "masks.specs[0]",
            "ratio: found 0.999, which leaves 0 of the 196 tokens of a frame as context",
        ),
        (
            ["masks.truncate=batch_random"],
            "masks.truncate",
            "found \"batch_random\", expected 'batch', 'batch-random' or 'none'",
        ),
        (["masks.round_to=0"], "masks.round_to", "found 0, expected a number of at least 1"),
        (["masks.complement=all"], "masks.complement", 'found "all", expected'),
        (
            ["masks.complement=context", "masks.specs[0].max_keep=9"],
            "masks.complement",
            "found 'context' and a limit on the context of mask spec 0",
        ),
        (
            ["masks.truncate=batch-random", "masks.truncate_group=7"],
            "masks.truncate_group",
            "found 7, expected a divisor of optim.global_batch 3072",
        ),
        (
            ["masks.specs[0].ratios=1"],
            "masks.specs[0].ratios",
            "found an unknown key, expected one of num_blocks",
        ),
    ],
)
def test_bad_masks_are_one_sentence(overrides, key, rest):
    with pytest.raises(UserError) as error:
        load_config(PAPER, overrides)
    assert str(error.value).startswith(f"{key}: {rest}")
    assert "\n" not in str(error.value)


def test_a_ratio_can_be_overridden():
    config = load([TUBES], "masks.specs[0].ratio=0.5")
    assert make_sampler(config).specs == (RandomTube(0.5),)
