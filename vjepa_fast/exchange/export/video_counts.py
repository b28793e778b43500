"""How many videos a run was trained on, for its model card."""

from __future__ import annotations

from vjepa_fast.exchange.export.source import Source
from vjepa_fast.training.batches import planner_if_readable


def video_counts(source: Source) -> list[int] | None:
    """The number of videos of each manifest of the run.

    A checkpoint holds a hash of the videos and no numbers, so the manifests are read again.

    Returns:
        None if a manifest is not where it was, or lists other videos than the run was trained on.
    """
    planner = planner_if_readable(source.config)
    known = planner is not None and planner.digest == source.checkpoint.state["videos"]
    return planner.counts if known else None
