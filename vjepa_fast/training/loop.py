"""Pretraining, from a config to a run folder."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import torch
import torch.distributed as dist
from tqdm.contrib.logging import logging_redirect_tqdm

from vjepa_fast.config import Config
from vjepa_fast.errors import UserError
from vjepa_fast.training.batches import Batches
from vjepa_fast.training.build import build_trainer
from vjepa_fast.training.checkpoint import Checkpoint, checkpoints, restore, save_checkpoint
from vjepa_fast.training.engine import init_process_group
from vjepa_fast.training.garbage import Garbage
from vjepa_fast.training.metrics import draw_curves
from vjepa_fast.training.recipe import recipe_changes, settings_of
from vjepa_fast.training.report import Reporter
from vjepa_fast.training.timing import Waiting
from vjepa_fast.training.trainer import Trainer

log = logging.getLogger("vjepa_fast")


def resume(trainer: Trainer, run: Path, config: dict, videos: str) -> None:
    """Continue at the run's newest checkpoint, if it has one.

    Raises:
        UserError: a checkpoint of another recipe or of other videos, or a damaged one.
    """
    saved = checkpoints(run)
    if not saved:
        return
    checkpoint = Checkpoint.open(saved[-1])
    changed = list(recipe_changes(checkpoint.state["config"], config))
    if changed:
        raise UserError(
            f"{checkpoint.folder}: found a run of another recipe ({'; '.join(changed[:3])}), "
            "expected the same one; set these keys back, or give another folder with --set output=…"
        )
    if checkpoint.state["videos"] != videos:
        raise UserError(
            f"{checkpoint.folder}: found other videos in data.manifests than when it was saved, "
            "expected the same files in the same order, since a sample id stands for one of them; "
            "put the manifests back, or give another folder with --set output=…"
        )
    restore(trainer, checkpoint)
    log.info("resumed at step %d from %s", trainer.step_number, checkpoint.folder)


def share_cores(world: int) -> None:
    """Give the ranks of one machine equal shares of its cores, unless OMP_NUM_THREADS says how."""
    if "OMP_NUM_THREADS" not in os.environ:
        # torchrun's name, and that of DeepSpeed's launcher
        names = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE")
        local = next((int(os.environ[name]) for name in names if name in os.environ), world)
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local))


def pretrain(config: Config) -> Path:
    """Run or resume a pretraining; collective under a launcher.

    Returns:
        The run's folder, with metrics.jsonl, curves.png, pictures/, tensorboard/ and checkpoints/.

    Raises:
        UserError: whatever the user can mend.
    """
    rank, world = init_process_group()
    share_cores(world)
    run, settings = Path(config.output), settings_of(config)
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"output: found {run}, where no folder can be made ({error.strerror}), expected a "
            "folder to write to; name another with --set output=…"
        ) from None
    trainer = build_trainer(config, world)
    batches = Batches(config, rank, world, trainer.device)
    resume(trainer, run, settings, batches.videos)
    first, last = trainer.step_number, config.optim.steps
    if rank == 0:
        (run / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    def due(done: int, every: int | None) -> bool:
        return done == last or (every is not None and done % every == 0)

    with batches.loader(first) as loader, logging_redirect_tqdm([log]):
        clips = Waiting(loader)
        with Reporter(config, run, trainer, batches, clips) as report, Garbage() as garbage:
            for step in range(first, last):
                result = trainer.step(batches.with_masks(step, clips))
                done = step + 1
                save = due(done, config.checkpoint.every)
                report.tick()
                if due(done, config.log.every) or step == first or save:
                    report.measure(step, result)
                    garbage.collect()
                if due(done, config.log.monitor_every):
                    report.monitor(step, result)
                if due(done, config.log.pictures_every):
                    report.pictures(step)
                if config.log.histograms_every and due(done, config.log.histograms_every):
                    report.histograms(step, result)
                if save:
                    save_checkpoint(trainer, run, settings, batches.videos, config.checkpoint.keep)
    if rank == 0:
        draw_curves(run)
    dist.barrier()
    return run
