"""On the demo's videos a head gives the numbers that a probe of one module gave before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.evaluation.heads.plain import train_plainly
from tests.rounding.accuracy import assert_accurate
from vjepa_fast.data.manifest.files import read_manifest
from vjepa_fast.evaluation.heads.spec import HeadSpec, ProbeForm, ProbeRecipe
from vjepa_fast.evaluation.heads.stack import HeadStack
from vjepa_fast.evaluation.heads.train import HeadTrainer
from vjepa_fast.inference.load import load_encoder


@pytest.mark.parametrize("seed", [0, 3])
def test_one_head_on_the_demo(trained: Path, demo: Path, seed: int) -> None:
    """Batches as they were drawn until now: anew for each update, from a generator of the seed."""
    encoder, features, labels = load_encoder(trained), {}, {}
    for split in ("train", "test"):
        entries = read_manifest(demo / f"{split}.csv")
        features[split] = encoder([entry.path for entry in entries]).tokens
        labels[split] = torch.tensor([entry.labels["direction"] for entry in entries])
    count, batch = len(labels["train"]), 16
    recipe = ProbeRecipe(epochs=10, batch=batch, seed=seed)
    form = ProbeForm("attentive", encoder.width, heads=2)
    spec = HeadSpec("direction", int(labels["train"].max()) + 1, 0, 1.0, 3e-3, 0.01)
    order = torch.Generator().manual_seed(seed)
    steps = recipe.epochs * count // batch
    rows = [torch.randperm(count, generator=order)[:batch] for _ in range(steps)]
    pairs = [(features["train"][own], labels["train"][own]) for own in rows]

    trainer = HeadTrainer(HeadStack(form, [spec], seed), recipe, torch.tensor([count]))
    for tokens, wanted in pairs:
        trainer.step(tokens, {"direction": wanted}, torch.ones(1, batch, dtype=torch.bool))
    plain = train_plainly(form, spec, recipe, pairs)
    exact = train_plainly(form, spec, recipe, pairs, torch.float64)

    tested = features["test"]
    logits = [
        trainer.stack(tested)["direction"][0].detach(),
        plain(tested).detach(),
        exact(tested.double()).detach(),
    ]
    assert_accurate(*logits, factor=3.0, atol=1e-6)
    best = logits[2].topk(2).values
    clear = best[:, 0] - best[:, 1] > 1e-3  # ties may go either way
    assert clear.any()
    guesses = [found.argmax(1)[clear].tolist() for found in logits]
    assert guesses[0] == guesses[1] == guesses[2]
