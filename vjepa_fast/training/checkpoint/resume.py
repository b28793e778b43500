"""Continuing a run at its newest checkpoint, or saying why not."""

from __future__ import annotations

import logging
from pathlib import Path

from vjepa_fast.errors import UserError
from vjepa_fast.training.checkpoint.format import Checkpoint, checkpoints, restore
from vjepa_fast.training.distributed.host_group import Hosts
from vjepa_fast.training.recipe import recipe_changes, with_defaults
from vjepa_fast.training.trainer import Trainer

log = logging.getLogger("vjepa_fast")


def resumable(run: Path, config: dict, videos: str, hosts: Hosts) -> Checkpoint | None:
    """The run's newest checkpoint, whole and of this recipe, if it has any. Collective; asks for no
    model, so that a mistake is found before there is one.

    Raises:
        UserError: a checkpoint of another recipe or of other videos, a damaged one, or hosts that
            see different ones.
    """
    saved = checkpoints(run)
    seen = hosts.gather([folder.name for folder in saved])
    for rank, names in enumerate(seen):
        if names != seen[0]:
            raise UserError(
                f"{run}: found the checkpoints {names} on rank {rank} and {seen[0]} on rank 0, "
                "expected the same; put output on a file system that all hosts share"
            )
    if not saved:
        return None
    _require_sound(saved, hosts)
    checkpoint = Checkpoint.open(saved[-1])
    changed = list(recipe_changes(with_defaults(checkpoint.state["config"]), config))
    if changed:
        raise UserError(
            f"{checkpoint.folder}: found a run of another recipe ({'; '.join(changed)}), expected "
            "the same one; set these keys back, or give another folder with --set output=…"
        )
    if checkpoint.state["videos"] != videos:
        raise UserError(
            f"{checkpoint.folder}: found other videos in data.manifests than when it was saved, "
            "expected the same files in the same order, since a sample id stands for one of them; "
            "put the manifests back, or give another folder with --set output=…"
        )
    return checkpoint


def resume(trainer: Trainer, checkpoint: Checkpoint) -> None:
    """Continue at a checkpoint. Collective.

    What follows is bit for bit what an unbroken run does at the same world size, and the same to
    float tolerance, with the same global batches, at any other.
    """
    restore(trainer, checkpoint)
    log.info("resumed at step %d from %s", trainer.step_number, checkpoint.folder)


def _require_sound(saved: list[Path], hosts: Hosts) -> None:
    """Refuse a damaged newest checkpoint: going on at an older one is for the user to decide."""
    damage = _damage(saved[-1], hosts)
    if damage is None:
        return
    older = next((c for c in reversed(saved[:-1]) if _damage(c, hosts) is None), None)
    outcome = f"go on from {older.name}, which is whole" if older else "start from the beginning"
    doomed = saved[saved.index(older) + 1 :] if older else saved
    raise UserError(
        f"{damage}, expected a whole checkpoint; remove it with rm -r "
        f"{' '.join(map(str, doomed))} and give the same command again, which will {outcome}"
    )


def _damage(folder: Path, hosts: Hosts) -> str | None:
    """What is wrong with a checkpoint. Every rank looks at its part of the shards. Collective."""
    try:
        checkpoint = Checkpoint.open(folder)
        own = checkpoint.damage(range(hosts.rank, checkpoint.world_size, hosts.world))
    except UserError as error:
        own = str(error).partition(", expected")[0]
    return next((damage for damage in hosts.gather(own) if damage), None)
