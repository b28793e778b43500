"""Heads that are trained together end where each would alone."""

import pytest
import torch

from vjepa_fast.evaluation.heads.spec import HeadSpec, ProbeForm, ProbeRecipe
from vjepa_fast.evaluation.heads.stack import HeadStack
from vjepa_fast.evaluation.heads.train import HeadTrainer

VIDEOS, BATCH, WIDTH = 24, 6, 16
ONE = ProbeForm("attentive", WIDTH, 2)
FOUR = ProbeForm("attentive", WIDTH, 2, blocks=4, norm_eps=1e-6)
LINEAR = ProbeForm("linear", WIDTH)
FORMS = pytest.mark.parametrize("form", [ONE, FOUR, LINEAR], ids=["one", "four", "linear"])
SPECS = [
    HeadSpec("digit", 5, 0, 1.0, 3e-3, 0.01),
    HeadSpec("motion", 3, 0, 0.5, 1e-3, 0.4),
    HeadSpec("digit", 5, 1, 0.5, 3e-4, 0.0),
    HeadSpec("digit", 5, 1, 0.2, 1e-2, 0.01),
    HeadSpec("speed", 1, 0, 1.0, 3e-3, 0.01),
]
RECIPE = ProbeRecipe(epochs=6, batch=BATCH, seed=7)


def make_data(dtype=torch.float32):
    """Features [VIDEOS, 5, WIDTH], targets, and which videos each head counts."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(VIDEOS, 5, WIDTH, generator=generator).to(dtype)
    targets = {
        "digit": torch.randint(5, (VIDEOS,), generator=generator),
        "motion": torch.randint(3, (VIDEOS,), generator=generator),
        "speed": torch.randn(VIDEOS, generator=generator),
    }
    counted = [torch.rand(VIDEOS, generator=generator) < spec.share for spec in SPECS]
    return tokens, targets, torch.stack(counted)


def batches(epochs):
    generator = torch.Generator().manual_seed(2)
    for _ in range(epochs):
        yield from torch.randperm(VIDEOS, generator=generator).split(BATCH)


def train(form, heads, data, recipe=RECIPE, rows=None):
    """A trainer of these heads after all batches."""
    tokens, targets, counted = data
    counted = counted[heads]
    stack = HeadStack(form, [SPECS[i] for i in heads], recipe.seed)
    trainer = HeadTrainer(stack, recipe, counted.sum(1))
    for picked in rows or batches(recipe.epochs):
        wanted = {name: target[picked] for name, target in targets.items()}
        trainer.step(tokens[picked], wanted, counted[:, picked])
    return trainer


@FORMS
def test_together_as_alone(form):
    """Other targets, draws, shares, learning rates and weight decays do not matter to a head."""
    data = make_data()
    together = train(form, [0, 1, 2, 3, 4], data)
    for i in range(len(SPECS)):
        alone = train(form, [i], data)
        start = HeadStack(form, [SPECS[i]], RECIPE.seed).single(0).state_dict()
        found = together.stack.single(i).state_dict()
        for name, value in alone.stack.single(0).state_dict().items():
            assert (found[name] - value).abs().max() <= 1e-5, (i, name)
        assert any(not torch.equal(found[name], value) for name, value in start.items())
        assert together.losses[i].item() == pytest.approx(alone.losses[0].item(), abs=1e-5)
        assert together.seen[i] == alone.seen[0]
