"""Train an attentive classifier on frozen features (paper, section 4.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from vjepa_fast.models.probe import AttentiveClassifier

WHITENING_FLOOR = 1e-4  # of the largest variance; directions below are not blown up


@dataclass(frozen=True)
class ProbeRecipe:
    """How a probe is trained; the same for every kind of feature.

    Attributes:
        steps, batch, lr, weight_decay: of AdamW; the learning rate falls along a cosine to 0.
        width, heads: of the classifier; features of another width are projected to it, inside the
            probe.
    """

    steps: int = 900
    batch: int = 64
    lr: float = 1e-3
    weight_decay: float = 0.01
    width: int = 128
    heads: int = 4


class Whitening(nn.Module):
    """Centre frozen features at each position and whiten them by the training clips' statistics.

    What a token's features say about its own position is most of their variance and the same for
    every clip; without this the probe's optimiser hardly sees the rest. A fixed linear map, the
    same for every kind of feature.

    Args:
        features: of the training clips, [n, N, D].
    """

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        mean = features.mean(0, keepdim=True)
        rows = (features - mean).flatten(0, 1)
        values, vectors = torch.linalg.eigh((rows.T @ rows / len(rows)).double())
        floor = WHITENING_FLOOR * values.max()
        self.register_buffer("mean", mean)
        self.register_buffer("map", (vectors / values.clamp(min=floor).sqrt()).float())

    def forward(self, features: Tensor) -> Tensor:
        """[B, N, D] → [B, N, D], unit variance in every direction that carries any."""
        return (features - self.mean) @ self.map


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
        train, test: features, fp32 [n, N, D], whitened.
        train_labels, test_labels: classes, int64 [n], on the same device.
        recipe: how to train.
        seed: of the probe's weights and the order of clips.
        name: for the progress bar.

    Returns:
        Share of test clips classified right, after the last step.
    """
    count, classes = train.shape[0], int(max(train_labels.max(), test_labels.max())) + 1
    order = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        width = train.shape[-1]
        project = nn.Identity() if width == recipe.width else nn.Linear(width, recipe.width)
        classifier = AttentiveClassifier(recipe.width, recipe.heads, classes)
        probe = nn.Sequential(project, classifier).to(train.device)
    optimizer = torch.optim.AdamW(
        probe.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.steps)
    for _ in tqdm(range(recipe.steps), f"probe of {name}", leave=False, unit="step"):
        picked = torch.randperm(count, generator=order)[: recipe.batch].to(train.device)
        loss = F.cross_entropy(probe(train[picked]), train_labels[picked])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    with torch.no_grad():
        guesses = torch.cat([probe(batch).argmax(1) for batch in test.split(256)])
    return (guesses == test_labels).float().mean().item()
