"""What a probe head is, and how heads are trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from vjepa_fast.evaluation.attentive_classifier import PROBE_NORM_EPS, AttentiveClassifier
from vjepa_fast.models.block import NORM_EPS, init_weights


@dataclass(frozen=True)
class HeadSpec:
    """One head: what it learns, from which labels, and with which settings.

    Attributes:
        target: name of the label column; heads of one target have the same number of outputs.
        outputs: classes; 1 is a regression of the (standardized) value.
        draw: which draw of the labels it learns from; also picks its initial weights.
        share: of the labels that the draw keeps, in (0, 1].
        lr, weight_decay: AdamW's.
    """

    target: str
    outputs: int
    draw: int
    share: float
    lr: float
    weight_decay: float


def places(specs: Sequence[HeadSpec]) -> list[int]:
    """The place of each head among those of its target, counted from 0."""
    counts: Counter[str] = Counter()
    found = []
    for spec in specs:
        found.append(counts[spec.target])
        counts[spec.target] += 1
    return found


@dataclass(frozen=True)
class ProbeForm:
    """The architecture of all heads of a stack.

    Attributes:
        kind: "attentive" (`AttentiveClassifier`) or "linear" (`LinearClassifier`).
        width: of the features, D.
        heads: of the attention, a divisor of the width.
        blocks: 1 as in V-JEPA, 4 as in V-JEPA 2.
        norm_eps: of every layer norm.
    """

    kind: Literal["attentive", "linear"]
    width: int
    heads: int = 1
    blocks: int = 1
    norm_eps: float = PROBE_NORM_EPS

    @staticmethod
    def of(
        kind: Literal["attentive", "linear"], width: int, heads: int, blocks: int = 1
    ) -> ProbeForm:
        """The form behind an encoder of this width and with these heads.

        With several blocks the norms are the encoder's, as in `transformers`, so that exports can
        hold the classifier.
        """
        if kind == "linear":
            return ProbeForm("linear", width)
        return ProbeForm(kind, width, heads, blocks, PROBE_NORM_EPS if blocks == 1 else NORM_EPS)


@dataclass(frozen=True)
class ProbeRecipe:
    """How all heads are trained.

    Attributes:
        epochs: passes of each head over its own videos.
        batch: videos of an update; a head with fewer makes one update an epoch.
        warmup_epochs: over which the learning rate also rises linearly.
        clip_grad: largest norm of a head's gradient, or None.
        seed: of the initial weights.
    """

    epochs: int
    batch: int
    warmup_epochs: float = 0.0
    clip_grad: float | None = None
    seed: int = 0


class LinearClassifier(nn.Module):
    """A linear layer on the mean of the tokens: [B, N, D] → [B, outputs]."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, outputs)
        init_weights(self.linear)

    def pooler(self, tokens: Tensor) -> Tensor:
        """The mean, [B, D]; accumulated in fp32, as torch does for bf16."""
        return tokens.mean(1)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.linear(self.pooler(tokens))


def make_head(form: ProbeForm, outputs: int, seed: int) -> LinearClassifier | AttentiveClassifier:
    """A lone head with the initial weights of this seed, fp32, on the host."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if form.kind == "linear":
            return LinearClassifier(form.width, outputs)
        return AttentiveClassifier(form.width, form.heads, outputs, form.blocks, form.norm_eps)
