"""The recipes that go on from published weights follow the rules of docs/adapt.md."""

from __future__ import annotations

import argparse
import math
import re
import shlex

import pytest
from pydantic import BaseModel

from tests.helpers.paths import REPOSITORY
from vjepa_fast.cli import COMMANDS
from vjepa_fast.commands import cost_of_config, info
from vjepa_fast.config import Config, load_config
from vjepa_fast.training.recipe import model_changes
from vjepa_fast.training.schedules import make_schedules

PAGE = (REPOSITORY / "docs" / "adapt.md").read_text(encoding="utf-8")
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


def test_the_pages_commands_exist() -> None:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    lines = [shlex.split(line) for block in blocks for line in block.splitlines()]
    named = set()
    for program, *arguments in lines:
        if program == "deepspeed":
            assert arguments[:2] == ["vjepa_fast/train.py", "--config"]
            load_config(REPOSITORY / arguments[2], [])
            continue
        assert program == "vjepa-fast"
        command, *rest = arguments
        parser = argparse.ArgumentParser(exit_on_error=False)
        COMMANDS[command].add_arguments(parser)
        parser.parse_args(rest)
        named.add(command)
    assert named >= {"import", "index", "masks", "info", "probe", "report", "export", "features"}


def test_the_pages_keys_exist() -> None:
    sections = {
        name: field.annotation.model_fields
        for name, field in Config.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    }
    keys = re.findall(rf"`({'|'.join(sections)})\.(\w+)", PAGE)
    assert len(keys) > 15
    assert [key for key in keys if key[1] not in sections[key[0]]] == []


def test_the_pages_computed_figures() -> None:
    memory, exa = [], []
    for name in PAIRS:
        config = loaded(name)
        rows = [row.split() for row in info.info_text(config).splitlines()]
        memory += [row[-3] for row in rows if row[:1] == ["1"] and "=" in row]
        optim = config.optim
        flops = cost_of_config.mean_clip_flops(config) * optim.steps * optim.global_batch
        exa.append(f"{flops / 1e18:.1f}")
    assert f"{memory[0]} GB and {memory[1]} GB on one GPU (computed)" in PAGE
    assert f"{exa[0]} and {exa[1]} EFLOP (computed)" in PAGE
