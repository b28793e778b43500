"""What a run tells while it runs: progress bar, metrics, warnings, and a stop at bad numbers."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path

from tqdm import tqdm

from vjepa_fast.config import Config
from vjepa_fast.errors import UserError
from vjepa_fast.training.checkpoint import checkpoints
from vjepa_fast.training.metrics import MetricsWriter
from vjepa_fast.training.monitor import CollapseMonitor, feature_health, teacher_distance
from vjepa_fast.training.timing import Waiting
from vjepa_fast.training.trainer import StepResult, Trainer

log = logging.getLogger("vjepa_fast")


class Reporter:
    """Measures when the loop says so. Rank 0 shows and writes; every rank must call `measure`.

    Args:
        config: of the run.
        run: its folder.
        trainer: at its first step.
        clips: the loader, which knows how long the training waited for it.
        rank: of this process.
    """

    def __init__(
        self, config: Config, run: Path, trainer: Trainer, clips: Waiting, rank: int
    ) -> None:
        self._config, self._run, self._trainer, self._clips = config, run, trainer, clips
        self._first = rank == 0
        self._writer = MetricsWriter(run, trainer.step_number) if self._first else None
        self._collapse = CollapseMonitor()
        if self._first and trainer.micro_batch == 1:
            log.info("collapse monitor: off; a micro-batch of one clip has no spread across clips")
        self._steps, self._clock = 0, time.perf_counter()
        self._bar = tqdm(
            total=config.optim.steps,
            initial=trainer.step_number,
            desc="pretraining",
            unit="step",
            disable=not self._first,
            dynamic_ncols=True,
        )

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        if self._writer:
            self._writer.close()

    def tick(self) -> None:
        """A step is done. No device sync."""
        self._steps += 1
        self._bar.update()

    def measure(self, step: int, result: StepResult) -> None:
        """Write a line of metrics. Collective; waits for the device.

        Raises:
            UserError: a loss or a gradient norm that is not finite.
        """
        values = {
            "loss": result.global_loss().item(),
            **{f"grad_norm_{part}": norm.item() for part, norm in result.grad_norms.items()},
            "lr": result.values.lr,
            "weight_decay": result.values.weight_decay,
            "momentum": result.values.momentum,
        }
        now = time.perf_counter()
        seconds, self._clock = now - self._clock, now
        speed = self._steps * self._config.optim.global_batch / seconds
        wait = self._clips.take() / seconds
        parts = {f"ms_{part}": ms for part, ms in self._trainer.laps.take().items()}
        self._steps = 0
        self._require_finite(step, values)
        if self._writer:
            self._writer.write(
                step, values | {"clips_per_second": speed, "data_wait": wait} | parts
            )
        self._bar.set_postfix_str(
            f"loss {values['loss']:.4f}, {speed:.0f} clips/s, data wait {wait:.1%}"
        )

    def monitor(self, step: int, result: StepResult) -> None:
        """Look at the health of rank 0's target features; waits for its device."""
        if self._writer and len(result.features) > 1:  # one clip has no spread across clips
            health = feature_health(result.features)
            self._collapse.check(step, health)
            teacher = self._trainer.teacher
            distance = teacher_distance(teacher.shards, teacher.averages)
            self._writer.write(step, health | {"teacher_distance": distance})

    def _require_finite(self, step: int, values: dict[str, float]) -> None:
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if bad:
            good = checkpoints(self._run)
            keep = f"; the last good checkpoint is {good[-1]}" if good else ""
            raise UserError(
                f"step {step}: found {', '.join(bad)} not finite, expected finite numbers; lower "
                f"optim.lr or optim.clip_grad and start again in a new output folder{keep}"
            )
