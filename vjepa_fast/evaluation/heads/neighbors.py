"""k-NN as heads: one for each label column and draw, without training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vjepa_fast.closed_form import neighbor_values, neighbor_votes
from vjepa_fast.evaluation.heads.spec import HeadSpec


class NeighborHeads:
    """The k nearest labeled videos by their mean features vote, see `neighbor_votes`.

    Args:
        specs: the heads; learning rates and weight decays have no meaning.
        bank: mean features of videos, fp32 [n, D].
        labeled: of each head, which rows of the bank it knows, int64 [m].
        truth: by target, classes int64 [n] or standardized values fp32 [n] of the bank's videos.
        k: number of neighbors.
    """

    def __init__(
        self,
        specs: Sequence[HeadSpec],
        bank: Tensor,
        labeled: Sequence[Tensor],
        truth: Mapping[str, Tensor],
        k: int,
    ) -> None:
        self.specs, self._bank, self._labeled = specs, bank, labeled
        self._truth, self._k = truth, k

    def __call__(self, tokens: Tensor) -> dict[str, Tensor]:
        """Log votes of each class, or values: tokens [b, N, D] → {target: fp32 [H, b, outputs]}."""
        queries = tokens.float().mean(1)
        found: dict[str, list[Tensor]] = {}
        for spec, rows in zip(self.specs, self._labeled, strict=True):
            own, truth = self._bank[rows], self._truth[spec.target][rows]
            if truth.is_floating_point():
                answer = neighbor_values(own, truth, queries, k=self._k)[:, None]
            else:
                votes = neighbor_votes(own, truth, queries, num_classes=spec.outputs, k=self._k)
                answer = votes.log()
            found.setdefault(spec.target, []).append(answer)
        return {target: torch.stack(answers) for target, answers in found.items()}
