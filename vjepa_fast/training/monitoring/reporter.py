"""Reports a pretraining while it runs: collapse, pictures and histograms, beside the metrics."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import torch
from torch import Tensor

from vjepa_fast.config import Config
from vjepa_fast.pictures import titled
from vjepa_fast.training.batches import Batches
from vjepa_fast.training.monitoring import pictures
from vjepa_fast.training.monitoring.collapse import (
    CollapseMonitor,
    feature_health,
    teacher_distance,
)
from vjepa_fast.training.monitoring.metrics import MetricsReporter
from vjepa_fast.training.monitoring.probe import TrainingProbe
from vjepa_fast.training.timers import TimedIterator
from vjepa_fast.training.trainer import PretrainingResult, Trainer

log = logging.getLogger("vjepa_fast")


class Reporter(MetricsReporter):
    """Of a pretraining, also collapse, pictures and histograms.

    Args:
        config: the run's config.
        run: the run's folder.
        trainer: before its first step.
        batches: the batches of this rank.
        clips: the loader, which knows how long the training has waited for it.
        probe: of log.probe_every; None: none.
    """

    def __init__(
        self,
        config: Config,
        run: Path,
        trainer: Trainer,
        batches: Batches,
        clips: TimedIterator,
        probe: TrainingProbe | None = None,
    ) -> None:
        super().__init__(config, run, trainer, clips, config.optim.steps, "pretraining")
        self._trainer, self._batches, self._probe = trainer, batches, probe
        if self._first and trainer.micro_batch == 1:
            log.info("collapse monitor: off, since it needs at least two clips per micro-batch")
        self._collapse = CollapseMonitor()
        self._examples: Tensor | None = None

    def schedule_values(self, step: int) -> dict[str, float]:
        momentum = self._trainer.schedules.momentum(step)
        return super().schedule_values(step) | {"momentum": momentum}

    def probe(self, step: int) -> float | None:
        """Measure the run's result, if that is due. Collective; host sync."""
        probe = self._probe
        if not probe or not self.due(step + 1, self._config.log.probe_every):
            return None
        value = probe.value(self._trainer)
        if self._writer and value is not None:
            self._writer.write(step, {probe.metric: value})
            log.info("step %d: %s %.4g", step + 1, probe.metric.replace("_", " "), value)
        return value

    def observe(self, step: int, result: PretrainingResult) -> None:
        """Measure and draw what is due after a step. Host sync on rank 0."""
        every, done = self._config.log, step + 1
        if self.due(done, every.collapse_every):
            self.check_collapse(step, result)
        if self.due(done, every.pictures_every):
            self.draw_pictures(step)
        if every.histograms_every and self.due(done, every.histograms_every):
            self.write_histograms(step, result)

    def check_collapse(self, step: int, result: PretrainingResult) -> None:
        """Measure the collapse of rank 0's target features. Host sync on rank 0.

        Only clips of data.num_frames are measured, so that measurements can be compared.
        """
        # One clip has no spread across clips.
        if self._writer and len(result.features) > 1 and self._is_main(result.features):
            health = feature_health(result.features)
            self._collapse.check(step, health)
            teacher = self._trainer.teacher
            if teacher.ema:
                health["teacher_distance"] = teacher_distance(teacher.shards, teacher.ema)
            self._writer.write(step, health)

    def draw_pictures(self, step: int) -> None:
        """Draw the step's masks, and the target encoder's features of a few fixed clips.

        Host sync on rank 0. A picture that cannot be written is a warning, not the run's end.
        """
        if self._writer is None:
            return
        try:
            if self._examples is None:
                self._examples = self._batches.examples(pictures.CLIPS)
            video, trainer = self._examples, self._trainer
            if video is None:
                log.warning(
                    "step %d: no pictures, since none of the first clips could be decoded", step + 1
                )
                return
            features = trainer.target_features(video.to(trainer.device))
            features = features.view(len(video), -1, features.shape[-1])
            grid, masks = self._config.grid, self._batches.example_masks(step)
            drawn = {"features": pictures.feature_picture(video, features, grid)}
            if masks is not None:
                drawn["masks"] = pictures.mask_picture(video, masks, grid)
            for name, pixels in drawn.items():
                title = pictures.TITLES[name].format(done=step + 1)
                self._writer.picture(step, name, titled(pixels, title))
        except OSError as error:
            log.warning("step %d: no pictures (%s)", step + 1, error)

    def write_histograms(self, step: int, result: PretrainingResult) -> None:
        """Write histograms of target features and of the target encoder's weights by block.

        To TensorBoard; host sync on rank 0.
        """
        if self._writer is None:
            return
        if self._is_main(result.features):
            self._writer.histogram(step, "target_features", result.features[:, ::4])
        encoder = self._trainer.teacher.network()
        for name, module in (
            ("patch_embed", encoder.patch_embed),
            *((f"block_{i}", block) for i, block in enumerate(encoder.blocks)),
        ):
            weights = [p.detach().flatten() for p in module.parameters() if p.ndim >= 2]
            self._writer.histogram(step, f"target_encoder/{name}", torch.cat(weights))

    def _is_main(self, features: Tensor) -> bool:
        """Whether features [B, N, D] are of clips of data.num_frames."""
        return features.shape[1] == math.prod(self._config.grid)
