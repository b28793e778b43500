"""The checkpoint with the best probe value so far, and the link `checkpoints/best` to it.

The value is in the checkpoint's own state.json, so whatever a kill leaves on disk, the best one can
be found again. The link is for people and commands; the newest checkpoint is the one to resume.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from vjepa_fast.errors import UserError
from vjepa_fast.training.checkpoint.format import BEST, Checkpoint, checkpoints, sync

log = logging.getLogger("vjepa_fast")


def find_best(run: Path, measure: str | None) -> tuple[str, float] | None:
    """The best checkpoint on disk, the earliest of equal ones: its folder's name and probe value.

    Args:
        run: the run's folder.
        measure: what the probe measures; values of other measures don't compare. None: no probe,
            which leaves the checkpoint that is linked.
    """
    found = None
    for folder in checkpoints(run) if measure else []:
        try:
            probe = Checkpoint.open(folder).state.get("probe")
        except UserError:  # a resume reports it, if it is the newest one
            continue
        if probe and probe["measure"] == measure and (not found or probe["value"] > found[1]):
            found = folder.name, probe["value"]
    linked = run / "checkpoints" / BEST
    if not found and linked.is_dir() and linked.is_symlink():
        found = os.readlink(linked), float("-inf")  # any value of this measure is better
    return found


def link_best(run: Path, name: str) -> None:
    """Let `checkpoints/best` lead to a checkpoint, at once and not in between."""
    link = run / "checkpoints" / BEST
    if link.is_symlink() and os.readlink(link) == name:
        return
    temporary = link.with_name(f".{BEST}.new")
    try:
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(name)
        temporary.replace(link)
        sync(link.parent)
    except OSError as error:  # some file systems have no links
        log.warning(
            "no link %s to %s, the best checkpoint (%s); it is kept: name its own folder",
            link,
            name,
            error.strerror,
        )
