"""The collapse monitor: are the target features still about the clip?

A token-wise spread of features can look healthy while a probe on them is at chance: features may
vary from position to position and say nothing about the clip. So what counts is how features differ
*across clips at the same position*, beside the effective rank of the pooled features.
"""

from __future__ import annotations

import logging

import torch
import torch.nn.functional as F
from torch import Tensor

from vjepa_fast.training.zero.shards import GroupShard

log = logging.getLogger("vjepa_fast")

STD_FLOOR = 0.10


def rank_me(features: Tensor) -> float:
    """RankMe (arXiv 2210.02885): exponential of the entropy of the singular values.

    Args:
        features: [B, D]. At most min(B, D) comes out.
    """
    values = torch.linalg.svdvals(features.float())
    share = values / values.sum().clamp(min=1e-12) + 1e-7
    return torch.exp(-(share * share.log()).sum()).item()


def feature_health(features: Tensor) -> dict[str, float]:
    """Measure target features. Waits for the device.

    Args:
        features: target encoder's output, [B, N, D], at least two clips.

    Returns:
        std_across_clips: std over the clips at the same position, averaged over positions and
            features, after the features' own normalisation (0 … 1: of 1 in all, how much tells
            clips apart); rank_me: of the mean-pooled features; target_variance: variance over a
            token's raw features, averaged over tokens.
    """
    features = features.float()
    normed = F.layer_norm(features, features.shape[-1:])
    return {
        "std_across_clips": normed.std(0).mean().item(),
        "rank_me": rank_me(normed.mean(1)),
        "target_variance": features.var(-1).mean().item(),
    }


def teacher_distance(shards: list[GroupShard], ema: dict[str, list[Tensor]]) -> float:
    """Relative distance |encoder - teacher| / |teacher| of this rank's share of the weights."""
    gap = whole = 0.0
    for shard in shards:
        for master, average in zip(shard.masters, ema[shard.name], strict=True):
            gap += (master.detach() - average).square().sum().item()
            whole += average.square().sum().item()
    return (gap / max(whole, 1e-30)) ** 0.5


class CollapseMonitor:
    """Warns once each time the spread across clips falls below a tenth."""

    def __init__(self) -> None:
        self._warned = False

    def check(self, step: int, health: dict[str, float]) -> bool:
        """Look at a measurement; log a warning when it has just gone bad. True while it is bad."""
        std = health["std_across_clips"]
        collapsed = not std >= STD_FLOOR
        if collapsed and not self._warned:
            log.warning(
                "step %d: target features collapse: std across clips at the same position is %.3f "
                "(healthy: above %.2f), RankMe %.1f; usual remedies: raise teacher.momentum, lower "
                "optim.lr, or leave less context in masks.specs",
                step,
                std,
                STD_FLOOR,
                health["rank_me"],
            )
        self._warned = collapsed
        return collapsed
