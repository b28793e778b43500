"""Trains an attentive classifier on frozen features (V-JEPA, sections 4.1 and 5)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vjepa_fast.evaluation.attentive_classifier import PROBE_NORM_EPS, AttentiveClassifier
from vjepa_fast.models.block import NORM_EPS
from vjepa_fast.progress import with_progress

_TEST_BATCH = 64  # clips


@dataclass(frozen=True)
class ProbeRecipe:
    """How a probe is trained; the same for every kind of feature.

    Attributes:
        steps, batch, lr, weight_decay: for AdamW; the learning rate decays to 0 by a cosine.
        warmup_steps: the learning rate also rises linearly over these.
        width, heads: size of the classifier; features of another width are first projected to it
            by a linear layer of the probe.
        blocks: see `AttentiveClassifier`: 1 as in V-JEPA, 4 as in V-JEPA 2.
    """

    steps: int = 300
    batch: int = 64
    lr: float = 3e-3
    warmup_steps: int = 0
    weight_decay: float = 0.01
    width: int = 128
    heads: int = 4
    blocks: int = 1

    @property
    def norm_eps(self) -> float:
        """With several blocks the encoder's, as in `transformers`, so that exports can hold it."""
        return PROBE_NORM_EPS if self.blocks == 1 else NORM_EPS


def make_recipe(width: int, heads: int, blocks: int) -> ProbeRecipe:
    """The settings for an encoder's features; wide self-attention diverges at the default lr."""
    stable = {"lr": 1e-3, "warmup_steps": 30} if blocks > 1 else {}
    return ProbeRecipe(width=width, heads=heads, blocks=blocks, **stable)


def number_classes(train: Tensor, test: Tensor) -> tuple[list[int], Tensor, Tensor]:
    """Number the classes of the training clips 0 .. n-1, by size of their label.

    Labels may be any integers, such as WordNet offsets or user ids.

    Args:
        train, test: labels, int64 [n] each.

    Returns:
        the label of each class; the classes of the training clips; those of the test clips, -1
        where no training clip has that label; int64 [n] each.
    """
    classes, numbered = train.unique(return_inverse=True)
    nearest = torch.searchsorted(classes, test).clamp(max=len(classes) - 1)
    found = torch.where(classes[nearest] == test, nearest, -1)
    return classes.tolist(), numbered, found


def label_split(labels: Tensor, fraction: float, seed: int) -> Tensor:
    """Draw the clips that carry labels: the same fraction of every class.

    Args:
        labels: classes, int64 [n].
        fraction: in (0, 1]; at least one clip of each class is kept.
        seed: seed of the draw.

    Returns:
        indices of the drawn clips in ascending order, int64 [m], on the host.
    """
    labels, generator = labels.cpu(), torch.Generator().manual_seed(seed)
    counts, drawn = labels.unique(return_counts=True)[1], []
    for own in labels.argsort(stable=True).split(counts.tolist()):
        keep = max(1, round(fraction * len(own)))
        drawn.append(own[torch.randperm(len(own), generator=generator)[:keep]])
    return torch.cat(drawn).sort().values


def train_probe(
    features: Tensor,
    labels: Tensor,
    recipe: ProbeRecipe,
    *,
    seed: int,
    name: str,
    labeled: Tensor | None = None,
) -> nn.Sequential:
    """Train a probe on frozen features.

    Args:
        features: fp32 [n, N, D].
        labels: classes from `number_classes`, int64 [n], on the same device.
        recipe: the training settings.
        seed: seed of the probe's initial weights and of the order of clips.
        name: label of the progress bar.
        labeled: indices of the clips to learn from, int64 [m]; None for all.

    Returns:
        [B, N, D] → logits [B, classes]: the projection to the probe's width, an `nn.Identity` if
        the features have it, and the `AttentiveClassifier`.
    """
    if labeled is None:
        labeled = torch.arange(len(features), device=features.device)
    count, classes = len(labeled), int(labels.max()) + 1
    order = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        width = features.shape[-1]
        project = nn.Identity() if width == recipe.width else nn.Linear(width, recipe.width)
        classifier = AttentiveClassifier(
            recipe.width, recipe.heads, classes, recipe.blocks, recipe.norm_eps
        )
        probe = nn.Sequential(project, classifier).to(features.device)
    optimizer = torch.optim.AdamW(
        probe.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True
    )
    rise = max(1, recipe.warmup_steps)  # over one step: from lr to lr
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / rise, total_iters=rise)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.steps)
    steps = range(recipe.steps)
    for _ in with_progress(steps, f"probe of {name}", len(steps), "step", leave=False):
        drawn = torch.randperm(count, generator=order)[: recipe.batch].to(features.device)
        picked = labeled[drawn]
        loss = F.cross_entropy(probe(features[picked]), labels[picked])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        warmup.step()
        decay.step()
    return probe


@torch.no_grad()
def probe_accuracy(probe: nn.Module, features: Tensor, labels: Tensor) -> float:
    """Fraction of the clips whose class the probe names; features [n, N, D], labels int64 [n]."""
    guesses = torch.cat([probe(batch).argmax(1) for batch in features.split(_TEST_BATCH)])
    return (guesses == labels).float().mean().item()
