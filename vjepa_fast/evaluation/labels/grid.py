"""The heads of a probe: one for each label column, draw, learning rate and weight decay."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from vjepa_fast.evaluation.heads.spec import HeadSpec
from vjepa_fast.evaluation.labels.draws import balanced_draw, plain_draw
from vjepa_fast.evaluation.labels.targets import TRAIN, Target

log = logging.getLogger("vjepa_fast")


@dataclass(frozen=True)
class Grid:
    """All settings that heads are trained with.

    Attributes:
        shares: of the labels, each in (0, 1].
        draws: draws of the labeled videos, for each share below 1.
        balanced: draw the same share of every class; else of all videos, the same for all columns.
            Values are always drawn of all videos.
        lrs, weight_decays: AdamW's; each pair is a head.
        seed: of the draws.
    """

    shares: tuple[float, ...] = (1.0,)
    draws: int = 3
    balanced: bool = True
    lrs: tuple[float, ...] = (1e-3,)
    weight_decays: tuple[float, ...] = (0.01,)
    seed: int = 0

    @property
    def choices(self) -> int:
        """Heads of one draw, of which validation chooses the best."""
        return len(self.lrs) * len(self.weight_decays)


def make_heads(
    targets: Sequence[Target], rows: Tensor, grid: Grid
) -> tuple[list[HeadSpec], list[Tensor]]:
    """All heads, and the rows of the training videos that each learns from.

    Args:
        targets: the columns.
        rows: of the videos that may be drawn, int64 [m], ascending.
        grid: the settings.

    Returns:
        the heads, target by target; of each, rows int64 [.] in ascending order.
    """
    specs, labeled = [], []
    for target, share in product(targets, grid.shares):
        for draw in range(1 if share == 1 else grid.draws):
            drawn = rows[_draw(target, rows, share, grid, grid.seed + draw)]
            _warn_of_classes_without(target, drawn, share, draw)
            for lr, weight_decay in product(grid.lrs, grid.weight_decays):
                specs.append(HeadSpec(target.name, target.outputs, draw, share, lr, weight_decay))
                labeled.append(drawn)
    return specs, labeled


def _draw(target: Target, rows: Tensor, share: float, grid: Grid, seed: int) -> Tensor:
    if grid.balanced and not target.has_values:
        return balanced_draw(target.truth[TRAIN][rows], share, seed)
    return plain_draw(len(rows), share, seed)


def _warn_of_classes_without(target: Target, drawn: Tensor, share: float, draw: int) -> None:
    if target.has_values:
        return
    counts = torch.bincount(target.truth[TRAIN][drawn], minlength=target.outputs)
    absent = [target.names[i] for i in (counts == 0).nonzero()[:, 0].tolist()]
    if absent:
        log.warning(
            "label_%s: found no labeled video of %d of %d classes in draw %d of %g %% (%s); no "
            "head can learn them",
            target.name,
            len(absent),
            target.outputs,
            draw,
            100 * share,
            ", ".join(absent[:20]) + ", …" * (len(absent) > 20),
        )
