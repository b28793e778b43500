"""Pretraining, from a config to a run folder."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist
from tqdm import tqdm

from vjepa_fast.config import Config
from vjepa_fast.errors import UserError
from vjepa_fast.training.batches import Batches
from vjepa_fast.training.build import build_trainer
from vjepa_fast.training.checkpoint import Checkpoint, checkpoints, restore, save_checkpoint
from vjepa_fast.training.engine import init_process_group
from vjepa_fast.training.metrics import MetricsWriter, draw_curves
from vjepa_fast.training.monitor import CollapseMonitor, feature_health, teacher_distance
from vjepa_fast.training.timing import Waiting
from vjepa_fast.training.trainer import StepResult, Trainer

log = logging.getLogger("vjepa_fast")

# What may change between a checkpoint and the run that resumes it: nothing that alters the recipe.
_FREE_TO_CHANGE = {
    ("output",),
    ("log",),
    ("checkpoint",),
    ("zero",),
    ("compile",),
    ("data", "backend"),
    ("data", "num_threads"),
    ("data", "prefetch"),
    ("optim", "micro_batch"),
}


def _changes(saved: dict, own: dict, at: tuple[str, ...] = ()) -> list[str]:
    """Keys whose values differ, apart from those that are free to change."""
    found = []
    for key in sorted(saved.keys() | own.keys()):
        place, old, new = (*at, key), saved.get(key), own.get(key)
        if place in _FREE_TO_CHANGE or old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            found += _changes(old, new, place)
        else:
            found.append(f"{'.'.join(place)} was {json.dumps(old)} and is {json.dumps(new)}")
    return found


def resume(trainer: Trainer, run: Path, config: dict) -> None:
    """Continue at the run's newest checkpoint, if it has one.

    Raises:
        UserError: a checkpoint of another recipe, or a damaged one.
    """
    saved = checkpoints(run)
    if not saved:
        return
    checkpoint = Checkpoint.open(saved[-1])
    changed = _changes(checkpoint.state["config"], config)
    if changed:
        raise UserError(
            f"{checkpoint.folder}: found a run of another recipe ({'; '.join(changed[:3])}), "
            "expected the same one; set these keys back, or give another output folder"
        )
    restore(trainer, checkpoint)
    log.info("resumed at step %d from %s", trainer.step_number, checkpoint.folder)


def _measure(trainer: Trainer, result: StepResult, monitor: CollapseMonitor) -> dict[str, float]:
    health = feature_health(result.features)
    monitor.check(trainer.step_number - 1, health)
    teacher = trainer.teacher
    health["teacher_distance"] = teacher_distance(teacher.shards, teacher.averages)
    return health


def _require_finite(step: int, values: dict[str, float], run: Path) -> None:
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
        good = checkpoints(run)
        raise UserError(
            f"step {step}: found non-finite {', '.join(bad)}, expected finite numbers; lower "
            f"optim.lr or optim.clip_grad and start again"
            + (f" (last good checkpoint: {good[-1]})" if good else "")
        )


def pretrain(config: Config) -> Path:
    """Run or resume a pretraining; collective under a launcher.

    Returns:
        The run's folder, with metrics.jsonl, curves.png, tensorboard/ and checkpoints/.

    Raises:
        UserError: whatever the user can mend.
    """
    rank, world = init_process_group()
    if "OMP_NUM_THREADS" not in os.environ:  # ranks of one machine share its cores
        local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // local))
    run, settings = Path(config.output), json.loads(config.model_dump_json())
    trainer = build_trainer(config, world)
    resume(trainer, run, settings)
    batches = Batches(config, rank, world, trainer.device)
    first, last = trainer.step_number, config.optim.steps
    if rank == 0:
        run.mkdir(parents=True, exist_ok=True)
        (run / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    writer = MetricsWriter(run, first) if rank == 0 else None
    monitor = CollapseMonitor()
    bar = tqdm(total=last, initial=first, unit="step", disable=rank != 0, dynamic_ncols=True)
    clock, logged = time.perf_counter(), first

    with batches.loader(first) as clips:
        waiting = Waiting(clips)
        for step in range(first, last):
            result = trainer.step(batches.with_masks(step, waiting))
            bar.update()
            done = step + 1
            values: dict[str, float] = {}
            if done % config.log.every == 0 or done == last or step == first:
                loss = result.global_loss().item()  # host sync
                seconds, clock = time.perf_counter() - clock, time.perf_counter()
                speed = (done - logged) * config.optim.global_batch / seconds
                values = {
                    "loss": loss,
                    **{f"grad_norm_{part}": n.item() for part, n in result.grad_norms.items()},
                    "lr": result.values.lr,
                    "weight_decay": result.values.weight_decay,
                    "momentum": result.values.momentum,
                    "clips_per_second": speed,
                    "data_wait": waiting.take() / seconds,
                }
                logged = done
                _require_finite(step, values, run)
                bar.set_postfix_str(
                    f"loss {loss:.4f}, {speed:.0f} clips/s, data wait {values['data_wait']:.1%}"
                )
            if done % config.log.monitor_every == 0 or done == last:
                values |= _measure(trainer, result, monitor)
            if writer and values:
                writer.write(step, values)
            if done % config.checkpoint.every == 0 or done == last:
                save_checkpoint(trainer, run, settings, config.checkpoint.keep)
    bar.close()
    if writer:
        writer.close()
        draw_curves(run)
    dist.barrier()
    return run
