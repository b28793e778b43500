"""Train an attentive classifier on frozen features (paper, section 4.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from vjepa_fast.models.probe import AttentiveClassifier


@dataclass(frozen=True)
class ProbeRecipe:
    """How a probe is trained; the same for every kind of feature.

    Attributes:
        epochs, batch, lr, weight_decay: of AdamW; the learning rate falls along a cosine to 0.
        width, heads: of the classifier; features of another width are projected to it, inside the
            probe.
    """

    epochs: int = 15
    batch: int = 64
    lr: float = 1e-3
    weight_decay: float = 0.01
    width: int = 128
    heads: int = 4


class _Probe(nn.Module):
    """Standardise features by the training set's statistics, project if needed, classify."""

    def __init__(self, features: Tensor, recipe: ProbeRecipe, classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", features.mean((0, 1)))
        self.register_buffer("std", features.std((0, 1)).clamp(min=1e-6))
        width = features.shape[-1]
        self.project = nn.Identity() if width == recipe.width else nn.Linear(width, recipe.width)
        self.classifier = AttentiveClassifier(recipe.width, recipe.heads, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.classifier(self.project((tokens - self.mean) / self.std))


def probe_accuracy(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    recipe: ProbeRecipe,
    *,
    seed: int,
    name: str,
) -> float:
    """Train a probe on frozen features and test it.

    Args:
        train, test: features, fp32 [n, N, D].
        train_labels, test_labels: classes, int64 [n].
        recipe: how to train.
        seed: of the probe's weights and the order of clips.
        name: for the progress bar.

    Returns:
        Share of test clips classified right, after the last epoch.
    """
    device, count = train.device, train.shape[0]
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    train_labels, test_labels = train_labels.to(device), test_labels.to(device)
    order = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        probe = _Probe(train, recipe, classes).to(device)
    optimizer = torch.optim.AdamW(
        probe.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True
    )
    steps = recipe.epochs * math.ceil(count / recipe.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in tqdm(range(recipe.epochs), f"probe of {name}", leave=False, unit="epoch"):
        for picked in torch.randperm(count, generator=order).to(device).split(recipe.batch):
            loss = F.cross_entropy(probe(train[picked]), train_labels[picked])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    with torch.no_grad():
        guesses = torch.cat([probe(batch).argmax(1) for batch in test.split(256)])
    return (guesses == test_labels).float().mean().item()
