"""Reports a pretraining while it runs: collapse, pictures and histograms, beside the metrics."""

from __future__ import annotations

import logging
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
        values = super().schedule_values(step)
        if self._trainer.teacher:
            values["momentum"] = self._trainer.schedules.momentum(step)
        return values

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

        Only clips of data.num_frames are measured, so that measurements can be compared. Where
        pixels are predicted, the encoder's features are measured, which cannot collapse so.
        """
        # One clip has no spread across clips.
        if not self._writer or len(result.video) < 2 or not self._is_main(result.video):
            return
        features = self._features(result)
        if features is None:
            return
        health = feature_health(features)
        teacher = self._trainer.teacher
        if teacher:
            self._collapse.check(step, health)
        if teacher and teacher.ema:
            health["teacher_distance"] = teacher_distance(teacher.shards, teacher.ema)
        self._writer.write(step, health)

    def draw_pictures(self, step: int) -> None:
        """Draw the step's masks, and the features of a few fixed clips.

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
            grid, masks = self._config.grid, self._batches.example_masks(step)
            drawn = {}
            if self._has_encoder:
                encode = trainer.target_features if trainer.teacher else trainer.result_features
                features = encode(video.to(trainer.device)).unflatten(0, (len(video), -1))
                drawn["features"] = pictures.feature_picture(video, features, grid)
            if masks is not None:
                drawn["masks"] = pictures.mask_picture(video, masks, grid)
            for name, pixels in drawn.items():
                network = "target encoder" if trainer.teacher else "encoder"
                title = pictures.TITLES[name].format(done=step + 1, network=network)
                self._writer.picture(step, name, titled(pixels, title))
        except OSError as error:
            log.warning("step %d: no pictures (%s)", step + 1, error)

    def write_histograms(self, step: int, result: PretrainingResult) -> None:
        """Write histograms of target features and of the target encoder's weights by block; where
        pixels are predicted, of the encoder's.

        To TensorBoard; host sync on rank 0.
        """
        if self._writer is None or not self._has_encoder:
            return
        teacher = self._trainer.teacher
        kind, folder = ("target", "target_encoder") if teacher else ("encoder", "encoder")
        if self._is_main(result.video):
            features = self._features(result)
            self._writer.histogram(step, f"{kind}_features", features[:, ::4])
        self._trainer.optimizer.wait_for_weights()
        encoder = teacher.network() if teacher else self._trainer.model.encoder
        for name, module in (
            ("patch_embed", encoder.patch_embed),
            *((f"block_{i}", block) for i, block in enumerate(encoder.blocks)),
        ):
            weights = [p.detach().flatten() for p in module.parameters() if p.ndim >= 2]
            self._writer.histogram(step, f"{folder}/{name}", torch.cat(weights))

    @property
    def _has_encoder(self) -> bool:
        """Whether this rank has an encoder to look at: at ZeRO stage 3 only a target encoder."""
        return self._trainer.teacher is not None or self._config.zero.stage < 3

    def _features(self, result: PretrainingResult) -> Tensor | None:
        """The target encoder's features of a step, else the encoder's if this rank has one."""
        if result.features is not None or not self._has_encoder:
            return result.features
        return self._trainer.result_features(result.video).unflatten(0, (len(result.video), -1))

    def _is_main(self, video: Tensor) -> bool:
        """Whether a video [B, T, H, W, 3] has clips of data.num_frames."""
        return video.shape[1] == self._config.data.num_frames
