"""Writing checkpoints, complete or not at all, in the step or in the background.

Every rank copies its shard to the host and writes it, with a checksum, into a partial folder whose
name starts with a dot. When all shards are on disk, rank 0 adds state.json and renames the folder:
a folder with its final name is complete. Then `checkpoints/best` is moved, if its probe is the best
so far; old checkpoints are removed only after that. If the disk is full, that checkpoint is skipped
and the run continues.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from vjepa_fast.config.schema import CheckpointConfig
from vjepa_fast.errors import UserError
from vjepa_fast.training.checkpoint.best import find_best, link_best
from vjepa_fast.training.checkpoint.format import (
    FORMAT,
    checkpoints,
    shard_name,
    state_checksum,
    sync,
    write_shard,
)
from vjepa_fast.training.distributed.host_group import HostGroup
from vjepa_fast.training.engine_trainer import EngineTrainer
from vjepa_fast.training.zero.optimizers import MOMENTS, adam_moments

log = logging.getLogger("vjepa_fast")

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def snapshot(trainer: EngineTrainer, rank: int) -> tuple[dict[str, Tensor], dict[str, list]]:
    """Copy this rank's shard to the host. Host sync.

    Returns:
        flat fp32 tensors by key ("encoder.decay/master" …), and by group the ranges
        [start, count] of its flat vector that they hold, concatenated.
    """
    tensors, ranges = {}, {}
    for shard in trainer.shards:
        if not shard.sharded and rank:
            continue  # every rank holds the same; rank 0 saves it
        ranges[shard.name] = [[r.start, r.count] for r in shard.ranges]
        tensors[f"{shard.name}/master"] = shard.read(shard.masters).cpu()
        for moment in MOMENTS:
            values = adam_moments(trainer.optimizer, shard, moment)
            tensors[f"{shard.name}/{moment}"] = shard.read(values).cpu()
        if shard.name in trainer.ema:
            tensors[f"{shard.name}/teacher"] = shard.read(trainer.ema[shard.name]).cpu()
    return tensors, ranges


@dataclass(frozen=True)
class _Pending:
    """A checkpoint in flight.

    Attributes:
        step: steps done.
        ranges: ranges of this rank's shard, see `snapshot`.
        write: result of `write_shard`, once it is done.
        groups, bad_steps: what rank 0 adds to state.json; bad_steps counts non-finite ones.
        value: of the probe at this step; None: there was none.
    """

    step: int
    ranges: dict[str, list]
    write: Future
    groups: dict[str, list]
    bad_steps: list[int]
    value: float | None


class Saver:
    """Saves the checkpoints of a run.

    `save`, `finish` and `close` are collective: every rank calls them at the same steps.

    Args:
        run: the run's folder, on a file system that all processes share.
        config: the run's config as JSON data; stored in every checkpoint.
        videos: hash of the videos that sample ids refer to.
        policy: when to save, and what to keep.
        host_group: the processes.
        measure: what the probe of this run measures, as a text that no other probe has; None: the
            run has no probe.
    """

    def __init__(
        self,
        run: Path,
        config: dict,
        videos: str,
        policy: CheckpointConfig,
        host_group: HostGroup,
        measure: str | None = None,
    ) -> None:
        self._run, self._config, self._videos = run, config, videos
        self._policy, self._host_group, self._measure = policy, host_group, measure
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: _Pending | None = None
        self._missing: str | None = None  # why the last checkpoint was skipped
        self._retry_at: int | None = None
        self._best: tuple[str, float] | None = None  # name of the best checkpoint's folder, value
        if host_group.rank == 0:
            for stale in (run / "checkpoints").glob(".step_*"):  # left by a killed run
                shutil.rmtree(stale)
            self._best = find_best(run, measure)
            if self._best:
                link_best(run, self._best[0])
        # no rank writes before stale folders are gone
        self._best = host_group.all_gather(self._best)[0]

    def retry_due(self, done: int) -> bool:
        """Whether, after `done` steps, a checkpoint that was skipped is to be tried again."""
        return self._retry_at is not None and done >= self._retry_at

    @property
    def in_flight(self) -> bool:
        """Whether this rank is still writing a checkpoint in the background. Not collective."""
        return self._pending is not None and not self._pending.write.done()

    def is_best(self, value: float | None) -> bool:
        """Whether a probe's value is better than that of every checkpoint so far."""
        return value is not None and (self._best is None or value > self._best[1])

    def save(self, trainer: EngineTrainer, value: float | None = None) -> None:
        """Start a checkpoint of the trainer's state; finish it unless saving in the background.

        Args:
            trainer: after a step.
            value: of the probe at this step, the same on every rank; None: there was none.
        """
        self.finish()
        self._retry_at = None
        step, rank = trainer.step_number, self._host_group.rank
        tensors, ranges = snapshot(trainer, rank)
        groups = {
            shard.name: [list(pair) for pair in zip(shard.names, shard.shapes, strict=True)]
            for shard in trainer.shards
        }
        file = self._partial_folder(step) / shard_name(rank)
        write = self._thread.submit(_write_in_folder, file, tensors)
        bad = trainer.guard.counts()
        bad_steps = [bad.total, bad.in_a_row, bad.last]
        self._pending = _Pending(step, ranges, write, groups, bad_steps, value)
        if not self._policy.background:
            self.finish()

    def finish(self) -> None:
        """Wait for the checkpoint in flight, commit it and remove old ones. Collective.

        Does nothing if no checkpoint was started. The loop calls it once no rank is `in_flight`, so
        that no rank waits here for another one's disk.

        Raises:
            UserError: writing failed for another reason than a full disk.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        mine: dict = {"ranges": pending.ranges}
        try:
            mine |= pending.write.result()
        except OSError as error:
            mine["error"] = error.errno, error.strerror
        shards = self._host_group.all_gather(mine)
        errors = [(rank, *s["error"]) for rank, s in enumerate(shards) if "error" in s]
        failure = errors[0] if errors else None
        if self._host_group.rank == 0 and failure is None:
            failure = self._commit(pending, shards)
        failure = self._host_group.all_gather(failure)[0]
        if failure is None:
            self._missing = self._retry_at = None
            if self.is_best(pending.value):
                self._best = self._folder(pending.step).name, pending.value
                if self._host_group.rank == 0:
                    link_best(self._run, self._best[0])
            if self._host_group.rank == 0:
                self._prune()
        else:
            self._abandon(pending.step, *failure)

    def close(self) -> None:
        """Finish the last checkpoint, at the planned end of the run or before. Collective.

        Raises:
            UserError: the last checkpoint was not written.
        """
        self.finish()
        self._thread.shutdown()
        if self._missing:
            saved = checkpoints(self._run)
            outcome = f"resume from {saved[-1].name}" if saved else "start from the beginning"
            raise UserError(
                f"{self._missing}, expected space for the run's last checkpoint; free some and "
                f"run the same command again, which will {outcome}"
            )

    def _folder(self, step: int) -> Path:
        return self._run / "checkpoints" / f"step_{step:08d}"

    def _partial_folder(self, step: int) -> Path:
        return self._folder(step).with_name(f".{self._folder(step).name}.writing")

    def _commit(self, pending: _Pending, shards: list[dict]) -> tuple | None:
        """Add state.json and rename the folder, on rank 0.

        Returns:
            None, or (rank, errno, message) of a failure.
        """
        folder = self._partial_folder(pending.step)
        lost = [rank for rank in range(len(shards)) if not (folder / shard_name(rank)).is_file()]
        if lost:
            message = f"no {shard_name(lost[0])} where rank 0 looks (do all hosts share it?)"
            return lost[0], errno.ENOENT, message
        state = {
            "format": FORMAT,
            "step": pending.step,
            "shards": shards,
            "groups": pending.groups,
            "bad_steps": pending.bad_steps,
            "config": self._config,
            "videos": self._videos,
        }
        if pending.value is not None:
            state["probe"] = {"measure": self._measure, "value": pending.value}
        try:
            with open(folder / "state.json", "w", encoding="utf-8") as file:
                json.dump(state | {"checksum": state_checksum(state)}, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            sync(folder)
            folder.rename(self._folder(pending.step))
            sync(folder.parent)
        except OSError as error:
            return 0, error.errno, error.strerror
        return None

    def _abandon(self, step: int, rank: int, number: int, message: str) -> None:
        """Remove the partial folder; continue if the disk was full, else raise."""
        folder = self._partial_folder(step)
        if self._host_group.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
        found = f"{folder}: found {message} on rank {rank}"
        if number not in _DISK_FULL:
            raise UserError(
                f"{found}, expected to write a checkpoint; make the folder writable for every "
                "process and run the same command again"
            )
        self._missing = found
        self._retry_at = step + max(1, self._policy.every // 10)
        if self._host_group.rank == 0:
            log.warning(
                "%s, expected space for a checkpoint; free some (the run continues and tries again "
                "at step %d)",
                found,
                self._retry_at,
            )

    def _prune(self) -> None:
        for old in checkpoints(self._run)[: -self._policy.keep_last]:
            step = int(old.name.removeprefix("step_"))
            best = self._best is not None and old.name == self._best[0]
            if not best and (self._policy.keep_every is None or step % self._policy.keep_every):
                self._remove(old)

    @staticmethod
    def _remove(folder: Path) -> None:
        # hidden first: a kill in between must not leave half a checkpoint under its final name
        hidden = folder.with_name(f".{folder.name}.removing")
        folder.rename(hidden)
        shutil.rmtree(hidden)


def _write_in_folder(file: Path, tensors: dict[str, Tensor]) -> dict[str, int]:
    file.parent.mkdir(parents=True, exist_ok=True)
    return write_shard(file, tensors)
