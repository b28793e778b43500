"""A run that another study has trained is not trained again: its folder is linked."""

from __future__ import annotations

import json
import os
from pathlib import Path

from vjepa_fast.studies.plan import PlannedRun
from vjepa_fast.training.recipe import recipe_changes, settings_of, with_defaults


def link_same_run(run: PlannedRun) -> Path | None:
    """Make a run's folder a link to the same run of another study, if one is finished.

    The same means: all settings of the recipe, the seed among them, and every checkpoint that is
    probed. A run that starts from a checkpoint is the same only if that is the same file.

    Args:
        run: not finished; what its folder holds of it, if anything, is kept.

    Returns:
        The other run's folder; None if there is none, or if this run was begun.
    """
    if run.folder.is_symlink() and not run.folder.exists():
        run.folder.unlink()  # what it led to was removed
    if run.folder.exists():
        return None
    study = run.folder.parent.parent
    for other in sorted(study.parent.glob(f"*/*/{run.folder.name}")):
        if study not in other.parents and not other.is_symlink() and _is_same(run, other):
            run.folder.parent.mkdir(parents=True, exist_ok=True)
            run.folder.symlink_to(os.path.relpath(other, run.folder.parent))
            return other
    return None


def _is_same(run: PlannedRun, other: Path) -> bool:
    states = [other / p.checkpoint.relative_to(run.folder) / "state.json" for p in run.probes]
    try:
        saved = [json.loads(state.read_text(encoding="utf-8"))["config"] for state in states]
    except (OSError, ValueError, KeyError):
        return False
    own = settings_of(run.config)
    return not any(any(recipe_changes(with_defaults(config), own)) for config in saved)
