"""A run that another study has finished is not trained again: it is probed where it is."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path

from vjepa_fast.config import Config
from vjepa_fast.errors import UserError
from vjepa_fast.training.batches import make_planner
from vjepa_fast.training.recipe import settings_of, with_defaults

STEP = "step_{:08d}"
_OF_NO_EFFECT = "output", "checkpoint"  # on weights, or on what a page says of a run
_videos: dict[tuple, str | None] = {}  # by data section and times of the manifests


def state_of(run: Path, step: int) -> dict | None:
    """What a run's checkpoint after that many steps stored; None if there is none."""
    try:
        state = json.loads((run / "checkpoints" / STEP.format(step) / "state.json").read_bytes())
    except (OSError, ValueError):
        return None
    known = isinstance(state, dict) and isinstance(state.get("config"), dict)
    return state if known else None


def run_folder(runs: Path, study: str, variant: str, seed: int) -> Path:
    """Where a study's run is, unless another study has finished it."""
    return runs / study / variant / f"seed{seed}"


def finished_elsewhere(config: Config, own: Path, steps: Iterable[int]) -> Path | None:
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
    study = own.parent.parent
    for other in sorted(study.parent.glob(str(run_folder(Path(), "*", "*", config.seed)))):
        states = [state_of(other, step) for step in steps]
        if study not in other.parents and all(
            state and _is_same(state, config) for state in states
        ):
            return other
    return None


def _is_same(state: dict, config: Config) -> bool:
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
        log = logging.getLogger("vjepa_fast")
        level = log.level
        log.setLevel(logging.ERROR)  # what is odd about a manifest is said when a run starts
        try:
            _videos[key] = make_planner(config).digest
        except (UserError, OSError):
            _videos[key] = None
        finally:
            log.setLevel(level)
    return _videos[key]
