"""Pretrains a model: from a config to a run folder; `train` is the loop of any training."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import torch.distributed as dist
from tqdm.contrib.logging import logging_redirect_tqdm

from vjepa_fast.config import Config
from vjepa_fast.errors import UserError
from vjepa_fast.training.batches import Batches, open_manifests
from vjepa_fast.training.build import build_trainer, with_pinned_teacher
from vjepa_fast.training.checkpoint.initial_weights import (
    load_initial,
    mask_tokens_from,
    open_initial,
    with_pinned_init,
    write_origin,
)
from vjepa_fast.training.checkpoint.resume import find_resumable, restore
from vjepa_fast.training.checkpoint.writer import Saver
from vjepa_fast.training.distributed.cpu import prepare_cpu
from vjepa_fast.training.distributed.garbage_collection import ManualGarbageCollection
from vjepa_fast.training.distributed.host_group import HostGroup
from vjepa_fast.training.distributed.launch import init_process_group
from vjepa_fast.training.distributed.peer_watch import PeerWatch
from vjepa_fast.training.distributed.preemption import StopRequests
from vjepa_fast.training.distributed.sole_writers import sole_writers
from vjepa_fast.training.engine_trainer import EngineTrainer
from vjepa_fast.training.monitoring.curves import draw_curves
from vjepa_fast.training.monitoring.metrics import MetricsReporter
from vjepa_fast.training.monitoring.probe import TrainingProbe
from vjepa_fast.training.monitoring.reporter import Reporter
from vjepa_fast.training.recipe import settings_of
from vjepa_fast.training.timers import TimedIterator

log = logging.getLogger("vjepa_fast")


def pretrain(config: Config) -> Path:
    """Run or resume a pretraining. Collective under a launcher.

    If any process gets SIGTERM, SIGUSR1, SIGINT or SIGHUP, all of them finish the step, save and
    return.

    Returns:
        The run's folder, with metrics.jsonl, curves.png, pictures/, tensorboard/ and checkpoints/.

    Raises:
        UserError: an error that the user can fix.
    """
    rank, world = init_process_group()
    prepare_cpu(world)
    run = Path(config.output)
    host_group = HostGroup()
    with PeerWatch(host_group):  # from here on an error in one process ends all
        config = with_pinned_init(with_pinned_teacher(config), host_group)
        # Building the model may take minutes, so all that the user may have to fix comes before.
        batches, probe = _with_videos(config, host_group)
        make_folder(run)
        with only_run_in(run, host_group):
            checkpoint = find_resumable(run, settings_of(config), batches.videos, host_group)
            initial = None if checkpoint else open_initial(config, host_group)
            trainer = build_trainer(config, world)
            if checkpoint:
                restore(trainer, checkpoint)
            elif initial:
                tokens = mask_tokens_from(config, initial)
                load_initial(trainer, initial, config.init, tokens)
                if rank == 0:
                    write_origin(run, initial, config)
            _warn_of_warmup(config)
            train(
                run,
                settings_of(config),
                config,
                trainer,
                batches,
                host_group,
                lambda clips: Reporter(config, run, trainer, batches, clips, probe),
                probe.measure if probe else None,
            )
            if rank == 0:
                draw_curves(run)
            dist.barrier()
    return run


def _with_videos(config: Config, group: HostGroup) -> tuple[Batches, TrainingProbe | None]:
    """What needs the manifests, which are read once and not kept."""
    manifests = open_manifests(config)
    batches = Batches(config, group.rank, group.world, manifests)
    probe = TrainingProbe(config, group, manifests) if config.log.probe_every else None
    return batches, probe


def make_folder(run: Path) -> None:
    """Make a run's folder, or raise UserError."""
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(run, error) from None


def _unwritable(run: Path, error: OSError) -> UserError:
    return UserError(
        f"output: found {run}, where nothing can be written ({error.strerror}), expected a folder "
        "to write to; name another with --set output=…"
    )


def only_run_in(run: Path, host_group: HostGroup) -> AbstractContextManager[None]:
    """A context in which no other run writes to the folder; rank 0 holds its lock. Collective.

    Raises:
        UserError: another run holds it; raised on every rank.
    """
    return sole_writers(
        run,
        host_group,
        "give another folder with --set output=…",
        lambda error: str(_unwritable(run, error)),
    )


def train(
    run: Path,
    settings: dict,
    config: Config,
    trainer: EngineTrainer,
    batches: Batches,
    host_group: HostGroup,
    reporter_of: Callable[[TimedIterator], MetricsReporter],
    measure: str | None = None,
) -> None:
    """Train from the trainer's step to the last one, or until a signal. Collective.

    Args:
        run: the run's folder.
        settings: the config as plain JSON data, which checkpoints hold.
        config: when to log and to save.
        trainer: with its first weights, or those of a checkpoint.
        batches: of this rank.
        host_group: the processes.
        reporter_of: makes the reporter of a loader.
        measure: of the reporter's probe, see `Saver`; None: it has none.

    Raises:
        UserError: clips or the last checkpoint are missing, or too many steps are not finite.
    """
    first, last = trainer.step_number, batches.steps
    saver = Saver(run, settings, batches.videos, config.checkpoint, host_group, measure)
    if host_group.rank == 0:
        text = json.dumps(settings, indent=2) + "\n"
        (run / "config.json").write_text(text, encoding="utf-8")
    with (
        StopRequests() as stopping,
        batches.loader(first, trainer.device) as loader,
        logging_redirect_tqdm([log]),
    ):
        clips = TimedIterator(loader)
        with reporter_of(clips) as reporter, ManualGarbageCollection() as garbage:
            for step in range(first, last):
                result = trainer.step(batches.step(step, clips))
                done = step + 1
                # All ranks agree on what follows, since saving, measuring and stopping are
                # collective: one small all-reduce per step.
                stop, writing = host_group.any(stopping.reason is not None, saver.in_flight)
                value = None if stop else reporter.probe(step)
                due = reporter.due(done, config.checkpoint.every)
                save = stop or due or saver.retry_due(done) or saver.is_best(value)
                reporter.tick()
                if save or step == first or reporter.due(done, config.log.every):
                    reporter.log_metrics(step, result)
                    garbage.collect()
                reporter.observe(step, result)
                if save:
                    saver.save(trainer, value)
                elif not writing:  # on any rank: `finish` is collective, and must not block
                    saver.finish()
                if stop:
                    break
            saver.close()
            if trainer.step_number < last:
                reasons = {reason for reason in host_group.all_gather(stopping.reason) if reason}
                log.info(
                    "stopped after step %d of %d, saved (%s); run the same command to resume",
                    trainer.step_number,
                    last,
                    ", ".join(sorted(reasons)),
                )


def _warn_of_warmup(config: Config) -> None:
    if config.optim.warmup_steps >= config.optim.steps:
        log.warning(
            "optim.warmup_steps: %d of %d steps, so the peak learning rate is never reached",
            config.optim.warmup_steps,
            config.optim.steps,
        )
