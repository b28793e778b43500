"""Checkpoints, as they are written: complete or absent, now or in the background.

Every rank copies its shard to the host and writes it into a hidden folder, with a checksum, synced
to disk. When all have, rank 0 adds state.json, syncs and renames: a folder with its final name is
whole. Only then are old checkpoints pruned. A disk that is full doesn't end the run.
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
from vjepa_fast.training.checkpoint.format import FORMAT, checkpoints, shard_name, state_checksum
from vjepa_fast.training.checkpoint.shard_file import sync, write_shard
from vjepa_fast.training.distributed.host_group import Hosts
from vjepa_fast.training.trainer import Trainer
from vjepa_fast.training.zero.shards import MOMENTS, adam_moments

log = logging.getLogger("vjepa_fast")

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def snapshot(trainer: Trainer, rank: int) -> tuple[dict[str, Tensor], dict[str, list]]:
    """Copies of this rank's shard on the host, and which ranges [start, count] of each group's
    flat vector they are, end to end. Waits for the device."""
    tensors, ranges = {}, {}
    for shard in trainer.shards:
        if not shard.sharded and rank:
            continue  # rank 0 holds the whole
        ranges[shard.name] = [[r.start, r.count] for r in shard.ranges]
        tensors[f"{shard.name}/master"] = shard.pick(shard.masters).cpu()
        for moment in MOMENTS:
            values = adam_moments(trainer.optimizer, shard, moment)
            tensors[f"{shard.name}/{moment}"] = shard.pick(values).cpu()
        if shard.name in trainer.teacher.averages:
            average = trainer.teacher.averages[shard.name]
            tensors[f"{shard.name}/teacher"] = shard.pick(average).cpu()
    return tensors, ranges


@dataclass(frozen=True)
class _Pending:
    """A save that has begun: which step, this rank's ranges, its write, and what rank 0 adds."""

    step: int
    ranges: dict[str, list]
    write: Future
    groups: dict[str, list]
    bad_steps: list[int]


class Saver:
    """Saves a run. All ranks call `save`, `finish` and `close` at the same steps.

    Args:
        run: the run's folder, on a file system that all processes share.
        config: the run's config as JSON data, kept for whoever reads the checkpoint.
        videos: a hash of the videos that sample ids stand for.
        policy: when to save, and what to keep.
        hosts: the processes.
    """

    def __init__(
        self, run: Path, config: dict, videos: str, policy: CheckpointConfig, hosts: Hosts
    ) -> None:
        self._run, self._config, self._videos = run, config, videos
        self._policy, self._hosts = policy, hosts
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: _Pending | None = None
        self._missing: str | None = None  # why the last save is not there
        self._retry_at: int | None = None
        if hosts.rank == 0:
            for stale in (run / "checkpoints").glob(".step_*"):  # what a kill left
                shutil.rmtree(stale)
        hosts.any(False)  # nobody writes before that is done

    def due(self, done: int) -> bool:
        """Whether to save after `done` steps."""
        again = self._retry_at is not None and done >= self._retry_at
        return again or done % self._policy.every == 0

    @property
    def writing(self) -> bool:
        """Whether this rank's thread is still at it. Not collective."""
        return self._pending is not None and not self._pending.write.done()

    def save(self, trainer: Trainer) -> None:
        """Begin a checkpoint of the trainer's state, and finish it unless in the background."""
        self.finish()
        self._retry_at = None
        step, rank = trainer.step_number, self._hosts.rank
        tensors, ranges = snapshot(trainer, rank)
        names = {id(p): name for name, p in trainer.model.named_parameters()}
        groups = {
            shard.name: [
                [names[id(p)], shape]
                for p, shape in zip(shard.parameters, shard.shapes, strict=True)
            ]
            for shard in trainer.shards
        }
        file = self._hidden(step) / shard_name(rank)
        write = self._thread.submit(_make_shard, file, tensors)
        bad = trainer.guard.read()
        bad_steps = [bad.total, bad.in_a_row, bad.last]
        self._pending = _Pending(step, ranges, write, groups, bad_steps)
        if not self._policy.background:
            self.finish()

    def finish(self) -> None:
        """Wait for a save that has begun, make it visible and prune. Nothing where none has.

        Raises:
            UserError: it failed, for another reason than a full disk.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        mine: dict = {"ranges": pending.ranges}
        try:
            mine |= pending.write.result()
        except OSError as error:
            mine["error"] = error.errno, error.strerror
        shards = self._hosts.gather(mine)
        errors = [(rank, *s["error"]) for rank, s in enumerate(shards) if "error" in s]
        failure = errors[0] if errors else None
        if self._hosts.rank == 0 and failure is None:
            failure = self._reveal(pending, shards)
        failure = self._hosts.gather(failure)[0]
        if failure is None:
            self._missing = self._retry_at = None
            if self._hosts.rank == 0:
                self._prune()
        else:
            self._give_up(pending.step, *failure)

    def close(self) -> None:
        """At the run's end, planned or not: finish, and insist on it.

        Raises:
            UserError: the last save is not on disk.
        """
        self.finish()
        self._thread.shutdown()
        if self._missing:
            saved = checkpoints(self._run)
            again = f"go on from {saved[-1].name}" if saved else "start again from the beginning"
            raise UserError(
                f"{self._missing}, expected room for the run's last checkpoint; free space and "
                f"give the same command again, which will {again}"
            )

    def _final(self, step: int) -> Path:
        return self._run / "checkpoints" / f"step_{step:08d}"

    def _hidden(self, step: int) -> Path:
        return self._final(step).with_name(f".{self._final(step).name}.writing")

    def _reveal(self, pending: _Pending, shards: list[dict]) -> tuple | None:
        """Add state.json and rename. For rank 0; (rank, errno, words) where that fails."""
        folder = self._hidden(pending.step)
        lost = [rank for rank in range(len(shards)) if not (folder / shard_name(rank)).is_file()]
        if lost:
            words = f"no {shard_name(lost[0])} where rank 0 looks (do all hosts share it?)"
            return lost[0], errno.ENOENT, words
        state = {
            "format": FORMAT,
            "step": pending.step,
            "shards": shards,
            "groups": pending.groups,
            "bad_steps": pending.bad_steps,
            "config": self._config,
            "videos": self._videos,
        }
        try:
            with open(folder / "state.json", "w", encoding="utf-8") as file:
                json.dump(state | {"checksum": state_checksum(state)}, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            sync(folder)
            folder.rename(self._final(pending.step))
            sync(folder.parent)
        except OSError as error:
            return 0, error.errno, error.strerror
        return None

    def _give_up(self, step: int, rank: int, number: int, words: str) -> None:
        folder = self._hidden(step)
        if self._hosts.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
        found = f"{folder}: found {words} on rank {rank}"
        if number not in _NO_ROOM:
            raise UserError(
                f"{found}, expected to write a checkpoint; make the folder writable for every "
                "process and give the same command again"
            )
        self._missing = found
        self._retry_at = step + max(1, self._policy.every // 10)
        if self._hosts.rank == 0:
            log.warning(
                "%s, expected room for a checkpoint; the run goes on and tries again at step %d: "
                "free space",
                found,
                self._retry_at,
            )

    def _prune(self) -> None:
        for old in checkpoints(self._run)[: -self._policy.keep_last]:
            step = int(old.name.removeprefix("step_"))
            if self._policy.keep_every is None or step % self._policy.keep_every:
                self._remove(old)

    @staticmethod
    def _remove(folder: Path) -> None:
        dying = folder.with_name(f".{folder.name}.removing")  # out of sight first, then gone
        folder.rename(dying)
        shutil.rmtree(dying)


def _make_shard(file: Path, tensors: dict[str, Tensor]) -> dict[str, int]:
    file.parent.mkdir(parents=True, exist_ok=True)
    return write_shard(file, tensors)
