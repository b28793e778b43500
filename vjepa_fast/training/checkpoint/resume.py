"""Resuming a run from its newest checkpoint, or saying why that is not possible."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from vjepa_fast.errors import UserError
from vjepa_fast.training.checkpoint.format import Checkpoint, checkpoints
from vjepa_fast.training.distributed.host_group import HostGroup
from vjepa_fast.training.engine_trainer import EngineTrainer
from vjepa_fast.training.recipe import recipe_changes, with_defaults
from vjepa_fast.training.zero.optimizers import MOMENTS, restore_adam

log = logging.getLogger("vjepa_fast")


def find_resumable(
    run: Path,
    config: dict,
    videos: str,
    host_group: HostGroup,
    read: Callable[[dict], dict] = with_defaults,
) -> Checkpoint | None:
    """Find the run's newest checkpoint and check that this run can resume from it. Collective.

    Needs no model, so that a mistake is found before one is built.

    Args:
        run: the run's folder.
        config: the run's config as JSON data.
        videos: hash of the videos that sample ids refer to.
        host_group: the processes.
        read: brings a stored config into the form of `config`.

    Returns:
        The checkpoint, or None if the run has none.

    Raises:
        UserError: the newest checkpoint has another recipe or other videos, is imported or is
            corrupt, or hosts see different checkpoints.
    """
    saved = checkpoints(run)
    seen = host_group.all_gather([folder.name for folder in saved])
    for rank, names in enumerate(seen):
        if names != seen[0]:
            raise UserError(
                f"{run}: found the checkpoints {names} on rank {rank} and {seen[0]} on rank 0, "
                "expected the same; put output on a file system that all hosts share"
            )
    if not saved:
        return None
    _require_intact(saved, host_group)
    checkpoint = Checkpoint.open(saved[-1])
    if checkpoint.imported:
        raise UserError(
            f"output: found {run}, which holds imported weights, expected a folder for this run; "
            f"give another one with --set output=…, and start from {run} with init.checkpoint"
        )
    changed = list(recipe_changes(read(checkpoint.state["config"]), config))
    if changed:
        raise UserError(
            f"{checkpoint.folder}: found a run of another recipe ({'; '.join(changed)}), expected "
            "the same one; set these keys back, or give another folder with --set output=…"
        )
    if checkpoint.state["videos"] != videos:
        fine_tunes = "classifier" in config
        where = "videos or labels in data.train" if fine_tunes else "videos in data.manifests"
        raise UserError(
            f"{checkpoint.folder}: found other {where} than when it was saved, "
            "expected the same ones in the same order, since sample ids refer to them; restore "
            "the manifest, or give another folder with --set output=…"
        )
    return checkpoint


def restore(trainer: EngineTrainer, checkpoint: Checkpoint) -> None:
    """Load master weights, moments, EMA weights and step number, at any world size. Collective.

    At the same world size the run continues bit for bit as if it had not been interrupted. At any
    other world size it sees the same global batches and agrees to float tolerance.

    Raises:
        UserError: the checkpoint is of another model, or corrupt.
    """
    saved = checkpoint.state["groups"]
    for shard in trainer.shards:
        own = [list(pair) for pair in zip(shard.names, shard.shapes, strict=True)]
        if saved.get(shard.name) != own:
            difference = first_difference(saved.get(shard.name, []), own)
            raise UserError(
                f"{checkpoint.folder}: found {difference} of this model in {shard.name}, "
                "expected the same names and shapes; set model and masks as the checkpoint's "
                "state.json has them, or choose another output folder"
            )
    step = checkpoint.state["step"]
    for shard in trainer.shards:

        def read(kind: str, shard=shard) -> Tensor:
            key = f"{shard.name}/{kind}"
            pieces = [checkpoint.read(key, r.start, r.count) for r in shard.ranges]
            return torch.cat(pieces) if pieces else torch.empty(0)

        shard.write(read("master"), shard.masters)
        restore_adam(trainer.optimizer, shard, {m: read(m) for m in MOMENTS}, step)
        if shard.name in trainer.ema:
            shard.write(read("teacher"), trainer.ema[shard.name])
    trainer.guard.restore(*checkpoint.state.get("bad_steps", (0, 0, -1)))  # none in old ones
    trainer.after_restore(step)
    log.info("resumed at step %d from %s", step, checkpoint.folder)


def first_difference(saved: list, own: list) -> str:
    """The first difference of two lists of names and shapes, as "name of shape … instead of …"."""
    for number in range(max(len(saved), len(own))):
        pair = [
            f"{group[number][0]} of shape {group[number][1]}" if number < len(group) else "nothing"
            for group in (saved, own)
        ]
        if pair[0] != pair[1]:
            return " instead of ".join(pair)
    raise ValueError("the lists are equal")


def _require_intact(saved: list[Path], host_group: HostGroup) -> None:
    """Reject a corrupt newest checkpoint: whether to use an older one is the user's decision."""
    corruption = _verify(saved[-1], host_group)
    if corruption is None:
        return
    older = next((c for c in reversed(saved[:-1]) if _verify(c, host_group) is None), None)
    outcome = f"resume from {older.name}, which is intact" if older else "start from the beginning"
    corrupt = saved[saved.index(older) + 1 :] if older else saved
    raise UserError(
        f"{corruption}, expected an intact checkpoint; remove it with rm -r "
        f"{' '.join(map(str, corrupt))} and run the same command again, which will {outcome}"
    )


def _verify(folder: Path, host_group: HostGroup) -> str | None:
    """Describe a checkpoint's corruption, or None. Each rank reads some shards. Collective."""
    rank, world = host_group.rank, host_group.world
    try:
        checkpoint = Checkpoint.open(folder)
        own = checkpoint.verify(range(rank, checkpoint.world_size, world))
    except UserError as error:
        own = str(error).partition(", expected")[0]
    return next((found for found in host_group.all_gather(own) if found), None)
