"""How many videos a run was trained on, for its model card."""

from __future__ import annotations

import logging

from vjepa_fast.errors import UserError
from vjepa_fast.exchange.export.source import Source
from vjepa_fast.training.batches import make_planner


def video_counts(source: Source) -> list[int] | None:
    """The number of videos of each manifest of the run.

    A checkpoint holds a hash of the videos and no numbers, so the manifests are read again.

    Returns:
        None if a manifest is not where it was, or lists other videos than the run was trained on.
    """
    log = logging.getLogger("vjepa_fast")
    level = log.level
    log.setLevel(logging.ERROR)  # what is wrong with a manifest was said when the run started
    try:
        planner = make_planner(source.config)
    except (UserError, OSError):
        return None
    finally:
        log.setLevel(level)
    return planner.counts if planner.digest == source.checkpoint.state["videos"] else None
