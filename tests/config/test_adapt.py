"""The recipes that go on from published weights follow the rules of docs/adapt.md."""

from __future__ import annotations

import math

import pytest

from tests.helpers.paths import REPOSITORY
from vjepa_fast.commands import cost_of_config
from vjepa_fast.config import Config, load_config
from vjepa_fast.training.recipe import model_changes
from vjepa_fast.training.schedules import make_schedules

PAIRS = {"adapt_vitl16": "vitl16", "adapt2_vitl16": "v2_vitl16"}


def loaded(name: str) -> Config:
    return load_config(REPOSITORY / "configs" / f"{name}.json")


@pytest.mark.parametrize("name", PAIRS)
def test_model_and_clips_are_those_of_the_pretraining(name: str) -> None:
    adapt, base = loaded(name), loaded(PAIRS[name])
    assert model_changes(base.model, adapt.model) == []
    assert adapt.masks.specs == base.masks.specs
    for key in ("num_frames", "frame_step", "fps", "crop_size", "area", "aspect_ratio", "flip"):
        assert getattr(adapt.data, key) == getattr(base.data, key), key
    init = adapt.init
    assert init.checkpoint not in (None, base.output, adapt.output)
    assert (init.encoder, init.predictor, init.target_encoder) == ("checkpoint",) * 3


@pytest.mark.parametrize("name", PAIRS)
def test_the_schedules_follow_the_batch_and_the_steps(name: str) -> None:
    adapt, base = loaded(name), loaded(PAIRS[name])
    steps, batch = adapt.optim.steps, adapt.optim.global_batch
    scale = math.sqrt(batch / base.optim.global_batch)
    # The first generation's peak was reached once, early; the second's rate was constant.
    late = base.optim.lr / 2 if base.optim.lr_schedule == "cosine" else base.optim.lr
    schedules = make_schedules(adapt)
    rates = [schedules.lr(step) for step in range(steps)]
    assert max(rates) == adapt.optim.lr == pytest.approx(late * scale, rel=0.02)
    assert rates.index(max(rates)) == adapt.optim.warmup_steps - 1 == steps // 20 - 1
    assert rates[0] < 0.03 * max(rates)
    assert rates[-1] == pytest.approx(base.optim.final_lr * scale, rel=0.2)
    # The EMA averages over a tenth of the run: longer ones leave it near its initial weights.
    momenta = {schedules.momentum(step) for step in (0, steps // 2, steps - 1)}
    assert [1 / (1 - momentum) for momentum in momenta] == [pytest.approx(steps / 10)]
    assert {schedules.weight_decay(step) for step in (0, steps - 1)} == {0.04}
    assert adapt.masks.truncate == "none"
    assert adapt.optim.clip_grad is not None


@pytest.mark.parametrize("name", PAIRS)
def test_a_gpu_of_24_gb_is_enough(name: str) -> None:
    config = loaded(name)
    context, target = cost_of_config.count_tokens(config)
    tokens = [sum(map(sum, counts)) / len(counts) for counts in (context, target)]
    world, _, accumulation, memory = cost_of_config.memory_by_world(config, *tokens)[0]
    assert (world, accumulation) == (1, config.optim.global_batch // config.optim.micro_batch)
    assert max(memory) < 0.8 * 24e9  # a fifth stays free, as docs/training.md says
