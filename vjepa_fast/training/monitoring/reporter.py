"""Reports a run while it runs: progress, metrics, pictures, and an end at non-finite numbers."""

from __future__ import annotations

import json
import logging
import math
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from vjepa_fast.config import Config
from vjepa_fast.errors import UserError
from vjepa_fast.pictures import titled
from vjepa_fast.progress import on_terminal
from vjepa_fast.training.batches import Batches
from vjepa_fast.training.checkpoint.format import checkpoints
from vjepa_fast.training.monitoring import pictures
from vjepa_fast.training.monitoring.collapse import (
    CollapseMonitor,
    feature_health,
    teacher_distance,
)
from vjepa_fast.training.monitoring.environment import environment
from vjepa_fast.training.monitoring.writer import MetricsWriter
from vjepa_fast.training.recipe import settings_of
from vjepa_fast.training.timers import TimedIterator
from vjepa_fast.training.trainer import StepResult, Trainer

log = logging.getLogger("vjepa_fast")


class Reporter:
    """Shows and writes what a run does. Only rank 0 writes; every rank calls the methods.

    Args:
        config: the run's config.
        run: the run's folder.
        trainer: before its first step.
        batches: the batches of this rank.
        clips: the loader, which knows how long the training has waited for it.
    """

    def __init__(
        self, config: Config, run: Path, trainer: Trainer, batches: Batches, clips: TimedIterator
    ) -> None:
        self._config, self._run, self._trainer = config, run, trainer
        self._batches, self._clips = batches, clips
        self._first = dist.get_rank() == 0
        self._writer = None
        if self._first:
            settings = settings_of(config)
            self._writer = MetricsWriter(run, trainer.step_number, config.log.wandb, settings)
            found = environment(trainer.device, dist.get_world_size())
            text = json.dumps(found, indent=2, ensure_ascii=False) + "\n"
            path = run / "environment.json"
            path.write_text(text, encoding="utf-8", errors="backslashreplace")
            if trainer.micro_batch == 1:
                log.info("collapse monitor: off, since it needs at least two clips per micro-batch")
        self._collapse = CollapseMonitor()
        self._skipped = trainer.guard.counts().total
        self._examples: Tensor | None = None
        self._steps, self._clock = 0, time.perf_counter()
        self._lines = self._first and not on_terminal()
        self._bar = tqdm(
            total=config.optim.steps,
            initial=trainer.step_number,
            desc="pretraining",
            unit="step",
            disable=not self._first or self._lines,
            dynamic_ncols=True,
        )

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        if self._writer:
            self._writer.close()

    def tick(self) -> None:
        """Count a step. No host sync."""
        self._steps += 1
        self._bar.update()

    def log_metrics(self, step: int, result: StepResult) -> None:
        """Write the finite scalars of a step. Collective; host sync.

        Raises:
            UserError: `optim.max_nonfinite_steps` non-finite steps in a row.
        """
        schedules = self._trainer.schedules
        values = {
            "loss": result.global_loss().item(),
            **{f"grad_norm_{part}": norm.item() for part, norm in result.grad_norms.items()},
            "lr": schedules.lr(step),
            "weight_decay": schedules.weight_decay(step),
            "momentum": schedules.momentum(step),
        }
        now = time.perf_counter()
        seconds, self._clock = now - self._clock, now
        speed = self._steps * self._config.optim.global_batch / seconds
        wait = self._clips.take() / seconds
        parts = {f"ms_{part}": ms for part, ms in self._trainer.timer.take().items()}
        steps, self._steps = self._steps, 0
        skipped = self._check_nonfinite()
        if self._writer:
            finite = {name: value for name, value in values.items() if math.isfinite(value)}
            more = {"skipped_steps": skipped, "clips_per_second": speed, "data_wait": wait}
            self._writer.write(step, finite | more | parts)
        text = f"loss {values['loss']:.4f}, {speed:.0f} clips/s, data wait {wait:.1%}"
        self._bar.set_postfix_str(text)
        if self._lines:
            done, last = step + 1, self._config.optim.steps
            left = tqdm.format_interval((last - done) * seconds / steps)
            log.info("step %d of %d: %s, %s left", done, last, text, left)

    def check_collapse(self, step: int, result: StepResult) -> None:
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

    def write_histograms(self, step: int, result: StepResult) -> None:
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

    def _check_nonfinite(self) -> int:
        """Number of steps skipped so far; warns of new ones and ends a run of too many in a row."""
        bad, limit = self._trainer.guard.counts(), self._config.optim.max_nonfinite_steps
        before, self._skipped = self._skipped, bad.total
        what = ", ".join(bad.what)
        if bad.in_a_row >= limit:
            saved = checkpoints(self._run)
            keep = f"the last checkpoint is {saved[-1]}" if saved else "there is no checkpoint yet"
            raise UserError(
                f"optim.max_nonfinite_steps: found {bad.in_a_row} steps in a row, up to step "
                f"{bad.last}, whose {what} was not finite, expected fewer than {limit}; lower "
                "optim.lr or optim.clip_grad, or check the data, and start in a new output folder "
                f"(these steps changed no weights; {keep})"
            )
        if bad.total > before and self._first:
            log.warning(
                "step %d: %s not finite; the step was skipped (%d so far)",
                bad.last,
                what,
                bad.total,
            )
        return bad.total
