"""The probe during training: ridge on the pooled features of a fixed sample of labeled clips."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vjepa_fast.closed_form import ridge
from vjepa_fast.config import Config
from vjepa_fast.data.manifest.entries import Entries
from vjepa_fast.training.distributed.host_group import HostGroup
from vjepa_fast.training.monitoring.probe_sample import ProbeSample
from vjepa_fast.training.trainer import Trainer

log = logging.getLogger("vjepa_fast")


class TrainingProbe:
    """Measures how well a column of the manifests can be read off the run's result weights.

    Nothing of the training depends on it: it draws no random numbers and changes no weights.

    Args:
        config: of the run, with log.probe_every.
        host_group: the processes.
        manifests: of `data.manifests`; None: they are opened.

    Attributes:
        metric: "probe_accuracy" for classes, "probe_r2" (the fraction of the variance that is
            explained) for values.
        measure: what the values are of, in words that no other probe has.

    Raises:
        UserError: see `ProbeSample`.
    """

    def __init__(
        self, config: Config, host_group: HostGroup, manifests: Sequence[Entries] | None = None
    ) -> None:
        self._group = host_group
        self._sample = ProbeSample(config, host_group.rank, host_group.world, manifests)
        self.metric = "probe_accuracy" if self._sample.classes else "probe_r2"
        self.measure = f"{self.metric} of {self._sample.what}"

    def value(self, trainer: Trainer) -> float | None:
        """Encode the sample, each rank its share, and fit and test the probe. Collective.

        Returns:
            The same on every rank, finite; None, with a warning, where the features are not finite
            or too few videos can be decoded.
        """
        share, features = [np.empty(0, np.int64)], []
        for videos, clips in self._sample.batches(trainer.micro_batch):
            share.append(videos)
            found = trainer.result_features(clips.to(trainer.device))
            features.append(pool(found.view(len(clips), -1, found.shape[-1])).cpu())
        mine = np.concatenate(share), torch.cat(features) if features else None
        parts = [part for part in self._group.all_gather(mine) if part[1] is not None]
        value = self._fit(parts) if self._group.rank == 0 else None
        return self._group.all_gather(value)[0]

    def _fit(self, parts: list[tuple[np.ndarray, Tensor]]) -> float | None:
        """Fit on the features of all ranks, in the order of the sample."""
        if not parts:
            log.warning("no probe: no video of its sample can be decoded")
            return None
        videos = np.concatenate([videos for videos, _ in parts])
        order = np.argsort(videos)
        features = torch.cat([found for _, found in parts])[torch.from_numpy(order)]
        targets, tested = (a[videos[order]] for a in (self._sample.targets, self._sample.tested))
        score = _accuracy if self._sample.classes else _r2
        if tested.all() or not tested.any():
            log.warning("no probe: its videos that can be decoded are all of one part")
            return None
        if not features.isfinite().all():
            log.warning("no probe: the features are not finite")
            return None
        tested = torch.from_numpy(tested)
        value = score(features, torch.from_numpy(targets.copy()), tested)
        if not math.isfinite(value):
            log.warning("no probe: its videos that can be decoded are too few, or all alike")
            return None
        return value


def pool(tokens: Tensor) -> Tensor:
    """Mean and standard deviation over the tokens, [B, N, D] of any float dtype → fp32 [B, 2 · D].

    The deviation makes learning visible: in a run on demo videos the accuracy for direction, with
    1000 videos to learn from and 1000 to test, rose from 0.34 to 0.61, and with the mean alone from
    0.29 to 0.44 (docs/log.md, "Which probe follows a run").
    """
    tokens = tokens.float()
    return torch.cat([tokens.mean(1), tokens.std(1, correction=0)], 1)


def _accuracy(features: Tensor, classes: Tensor, tested: Tensor) -> float:
    """Fraction of the tested clips whose class the ridge of one-hot classes finds."""
    known, numbers = classes[~tested].unique(return_inverse=True)
    weight, bias = ridge(features[~tested], F.one_hot(numbers))
    found = known[(features[tested].double() @ weight + bias).argmax(1)]
    return (found == classes[tested]).double().mean().item()


def _r2(features: Tensor, values: Tensor, tested: Tensor) -> float:
    """1 - squared error / squared deviation from the mean, of the tested clips; nan if all of these
    are equal.
    """
    if (values[tested] == values[tested][0]).all():  # whose mean may differ by a rounding
        return math.nan
    weight, bias = ridge(features[~tested], values[~tested].unsqueeze(1))
    error = features[tested].double() @ weight + bias - values[tested].unsqueeze(1)
    spread = values[tested] - values[tested].mean()
    return 1 - (error.square().sum() / spread.square().sum()).item()
