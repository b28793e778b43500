"""Layer-wise rates, clipping, drop path and dropout at every ZeRO stage, as in a plain loop."""

from __future__ import annotations

import pytest
import torch

from tests.finetuning.stage_runs import DEPTH, LAYER_DECAY, launch, make, plain_loop, settings
from tests.rounding.plain_training import assert_near
from vjepa_fast.finetuning.model import layer_groups

STEPS = 8
CASES = [(0, "linear"), (1, "linear"), (2, "attentive"), (3, "linear")]


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_stages_equal_a_plain_loop(world: int) -> None:
    references = {
        kind: [plain_loop(kind, STEPS, dtype) for dtype in (torch.float32, torch.float64)]
        for kind in ("linear", "attentive")
    }
    for found in launch(CASES, STEPS, world):
        for (stage, kind), result in zip(CASES, found, strict=True):
            assert ("Zero" in result["class"]) == (stage == 3 and world > 1)  # DeepSpeed's
            assert_near(result["found"], *references[kind])


def test_every_parameter_has_the_rate_of_its_layer() -> None:
    config = settings(0, "attentive")
    model = make(config)
    groups = layer_groups(model, config.optim)
    names = {id(p): name for name, p in model.named_parameters()}
    factors = {
        names[id(p)]: (group["lr_factor"], group["weight_decay"])
        for group in groups
        for p in group["params"]
    }
    assert factors.keys() == set(names.values())
    assert sum(len(group["params"]) for group in groups) == len(names)
    lowest = LAYER_DECAY ** (DEPTH + 1)
    assert factors["encoder.patch_embed.proj.weight"] == (lowest, 0.05)
    assert factors["encoder.patch_embed.proj.bias"] == (lowest, 0.0)
    assert factors["encoder.blocks.0.attn.qkv.weight"] == (LAYER_DECAY**DEPTH, 0.05)
    assert factors[f"encoder.blocks.{DEPTH - 1}.norm1.weight"] == (LAYER_DECAY, 0.0)
    assert factors["encoder.norm.weight"] == (1.0, 0.0)
    assert factors["classifier.pooler.query_tokens"] == (1.0, 0.05)
    assert factors["classifier.linear.weight"] == (1.0, 0.05)
