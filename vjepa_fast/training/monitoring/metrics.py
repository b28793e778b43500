"""Progress and metrics of any training, and its end at non-finite numbers."""

from __future__ import annotations

import json
import logging
import math
import time
from pathlib import Path

import torch.distributed as dist
from tqdm import tqdm

from vjepa_fast.config import Config
from vjepa_fast.errors import UserError
from vjepa_fast.progress import on_terminal
from vjepa_fast.training.checkpoint.format import checkpoints
from vjepa_fast.training.engine_trainer import EngineTrainer, StepResult
from vjepa_fast.training.monitoring.environment import environment
from vjepa_fast.training.monitoring.writer import MetricsWriter
from vjepa_fast.training.recipe import settings_of
from vjepa_fast.training.timers import TimedIterator

log = logging.getLogger("vjepa_fast")


class MetricsReporter:
    """Shows and writes what a run does. Only rank 0 writes; every rank calls the methods.

    Args:
        config: the run's config.
        run: the run's folder.
        trainer: before its first step.
        clips: the loader, which knows how long the training has waited for it.
        steps: steps of the run.
        name: what the run does, for the progress bar.
    """

    def __init__(
        self,
        config: Config,
        run: Path,
        trainer: EngineTrainer,
        clips: TimedIterator,
        steps: int,
        name: str,
    ) -> None:
        self._config, self._run, self._trainer = config, run, trainer
        self._clips, self._last = clips, steps
        self._first = dist.get_rank() == 0
        self._writer = None
        if self._first:
            settings = settings_of(config)
            self._writer = MetricsWriter(run, trainer.step_number, config.log.wandb, settings)
            found = environment(trainer.device, dist.get_world_size())
            text = json.dumps(found, indent=2, ensure_ascii=False) + "\n"
            path = run / "environment.json"
            path.write_text(text, encoding="utf-8", errors="backslashreplace")
        self._skipped = trainer.guard.counts().total
        self._steps, self._clock = 0, time.perf_counter()
        self._lines = self._first and not on_terminal()
        self._bar = tqdm(
            total=steps,
            initial=trainer.step_number,
            desc=name,
            unit="step",
            disable=not self._first or self._lines,
            dynamic_ncols=True,
        )

    def __enter__(self) -> MetricsReporter:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        if self._writer:
            self._writer.close()

    def due(self, done: int, every: int | None) -> bool:
        """Whether something is due after `done` steps: every so many, and after the last one."""
        return done == self._last or (every is not None and done % every == 0)

    def tick(self) -> None:
        """Count a step. No host sync."""
        self._steps += 1
        self._bar.update()

    def schedule_values(self, step: int) -> dict[str, float]:
        """The scheduled values of a step, by their names in metrics.jsonl."""
        schedules = self._trainer.schedules
        return {"lr": schedules.lr(step), "weight_decay": schedules.weight_decay(step)}

    def probe(self, step: int) -> float | None:
        """The value of the probe that is due after a step, the same on every rank: the checkpoint
        with the largest one is kept. Here there is none. Collective.
        """

    def observe(self, step: int, result: StepResult) -> None:
        """Measure what is due after a step; nothing here."""

    def log_metrics(self, step: int, result: StepResult) -> None:
        """Write the finite scalars of a step. Collective; host sync.

        Raises:
            UserError: `optim.max_nonfinite_steps` non-finite steps in a row.
        """
        values = {
            "loss": result.global_loss().item(),
            **{f"grad_norm_{part}": norm.item() for part, norm in result.grad_norms.items()},
            **self.schedule_values(step),
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
            left = tqdm.format_interval((self._last - step - 1) * seconds / steps)
            log.info("step %d of %d: %s, %s left", step + 1, self._last, text, left)

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
