"""A run that another study has finished is not trained again: it is probed where it is."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from vjepa_fast.config import Config
from vjepa_fast.errors import UserError
from vjepa_fast.training.batches import planner_if_readable
from vjepa_fast.training.recipe import settings_of, with_defaults

_OF_NO_EFFECT = "output", "checkpoint"  # on weights, or on what a page says of a run
_videos: dict[tuple, str | None] = {}  # by data section and times of the manifests


def run_folder(runs: Path, study: str, variant: str, seed: int) -> Path:
    """Where a study's run is, unless another study has finished it."""
    return runs / study / variant / f"seed{seed}"


def study_of(run: Path) -> str:
    """The study that a `run_folder` belongs to."""
    return run.parent.parent.name


def checkpoint_of(run: Path, step: int) -> Path:
    """The folder of a run's checkpoint after that many steps."""
    return run / "checkpoints" / f"step_{step:08d}"


def state_of(run: Path, step: int) -> dict | None:
    """What that checkpoint stored; None if there is none."""
    try:
        state = json.loads((checkpoint_of(run, step) / "state.json").read_bytes())
    except (OSError, ValueError):
        return None
    known = isinstance(state, dict) and isinstance(state.get("config"), dict)
    return state if known else None


def finished_elsewhere(config: Config, own: Path, steps: Collection[int]) -> Path | None:
    """Find the same run, finished by another study.

    The same means all settings but those of folder and checkpoints, the videos as the
    manifests list them now, and a checkpoint after each of `steps`. A run that starts from another
    one, or has its teacher from there, is never the same.

    Args:
        config: the run's.
        own: its `run_folder`.
        steps: the checkpoints that it needs, the last one among them.

    Returns:
        The other run's folder, or None.
    """
    if config.teacher.checkpoint or config.init.checkpoint:
        return None
    runs = own.parents[2].glob(str(run_folder(Path(), "*", "*", config.seed)))
    others = (run for run in sorted(runs) if study_of(run) != study_of(own))
    same = (run for run in others if all(_is_same(state_of(run, s), config) for s in steps))
    return next(same, None)


def _is_same(state: dict | None, config: Config) -> bool:
    if state is None:
        return False
    try:
        saved, own = with_defaults(state["config"]), settings_of(config)
    except UserError:  # a fine-tuning
        return False
    keys = (saved.keys() | own.keys()) - {*_OF_NO_EFFECT}
    # Opening manifests may take long, so it comes last.
    if any(saved.get(key) != own.get(key) for key in keys):
        return False
    videos = videos_of(config)
    return videos is not None and state.get("videos") == videos


def videos_of(config: Config) -> str | None:
    """The hash of the videos that a run of this config takes clips from, as its checkpoints have
    it; None if the manifests cannot be read."""
    try:
        times = [Path(manifest.path).stat().st_mtime_ns for manifest in config.data.manifests]
    except OSError:
        return None
    key = config.data.model_dump_json(), *times
    if key not in _videos:
        planner = planner_if_readable(config)
        _videos[key] = planner.digest if planner else None
    return _videos[key]
