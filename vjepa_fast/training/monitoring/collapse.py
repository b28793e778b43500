"""Measures of feature collapse: do the target features still depend on the clip?

The standard deviation over tokens can look healthy while a probe is at chance, since features may
vary with the position and not with the clip. So the measure is how features differ *across clips at
the same position*, together with the effective rank of the pooled features.
"""

from __future__ import annotations

import logging

import torch
import torch.nn.functional as F
from torch import Tensor

from vjepa_fast.training.zero.shards import GroupShard

log = logging.getLogger("vjepa_fast")

STD_FLOOR = 0.10  # std across clips below which features count as collapsed


def rank_me(features: Tensor) -> float:
    """RankMe (arXiv 2210.02885): exponential of the entropy of the singular values.

    Args:
        features: [B, D].

    Returns:
        effective rank, at most min(B, D).
    """
    values = torch.linalg.svdvals(features.float())
    p = values / values.sum().clamp(min=1e-12) + 1e-7
    return torch.exp(-(p * p.log()).sum()).item()


def feature_health(features: Tensor) -> dict[str, float]:
    """Measure target features. Host sync.

    Args:
        features: target encoder's output, [B, N, D], at least two clips.

    Returns:
        std_across_clips: std over clips at the same position, averaged over positions and features,
            after layer norm (so the std over everything is 1, and this lies in 0 … 1).
        rank_me: RankMe of the mean-pooled features.
        target_variance: variance over a token's features before layer norm, averaged over tokens.
    """
    features = features.float()
    normed = F.layer_norm(features, features.shape[-1:])
    return {
        "std_across_clips": normed.std(0).mean().item(),
        "rank_me": rank_me(normed.mean(1)),
        "target_variance": features.var(-1).mean().item(),
    }


def teacher_distance(shards: list[GroupShard], ema: dict[str, list[Tensor]]) -> float:
    """Relative distance |encoder - teacher| / |teacher| over this rank's shard of the weights."""
    distance = norm = 0.0
    for shard in shards:
        for master, teacher in zip(shard.masters, ema[shard.name], strict=True):
            distance += (master.detach() - teacher).square().sum().item()
            norm += teacher.square().sum().item()
    return (distance / max(norm, 1e-30)) ** 0.5


class CollapseMonitor:
    """Warns once each time the std across clips falls below `STD_FLOOR`."""

    def __init__(self) -> None:
        self._warned = False

    def check(self, step: int, health: dict[str, float]) -> bool:
        """Whether a measurement shows collapse; the first one of a series logs a warning."""
        std = health["std_across_clips"]
        collapsed = not std >= STD_FLOOR
        if collapsed and not self._warned:
            log.warning(
                "step %d: target features collapse: found std across clips %.3f and RankMe %.1f, "
                "expected a std above %.2f; raise teacher.momentum, lower optim.lr, or leave less "
                "context in masks.specs",
                step,
                std,
                health["rank_me"],
                STD_FLOOR,
            )
        self._warned = collapsed
        return collapsed
