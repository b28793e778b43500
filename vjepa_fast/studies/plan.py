"""The runs and the probes of a study; all configs are checked before any run starts."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vjepa_fast.config import Config, load_config
from vjepa_fast.errors import UserError
from vjepa_fast.studies.study import Study
from vjepa_fast.training.recipe import recipe_changes, settings_of, with_defaults

STEP = "step_{:08d}"


@dataclass(frozen=True)
class PlannedProbe:
    """A probe of a checkpoint.

    Attributes:
        name: in the study.
        step: of the checkpoint.
        checkpoint, output: folders.
        options: of `vjepa-fast probe`.
    """

    name: str
    step: int
    checkpoint: Path
    output: Path
    options: tuple[str, ...]

    @property
    def result(self) -> Path:
        """The file of its scores."""
        return self.output / "probe.json"

    @property
    def is_done(self) -> bool:
        """Whether its scores, by these options and of this checkpoint, are there."""
        try:
            asked = json.loads((self.output / "options.json").read_text(encoding="utf-8"))
            found = json.loads(self.result.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        state = self.checkpoint / "state.json"
        # A run that was deleted and trained again has newer checkpoints.
        newer = not state.exists() or state.stat().st_mtime <= self.result.stat().st_mtime
        return newer and (asked, found.get("step")) == ([*self.options], self.step)


@dataclass(frozen=True)
class PlannedRun:
    """A run of a variant.

    Attributes:
        variant, seed: which one.
        folder: of the run.
        config_file: the study's.
        overrides: its --set options.
        config: with them applied.
        needs: folders of the runs that have to be done before.
        probes: of its checkpoints.
    """

    variant: str
    seed: int
    folder: Path
    config_file: Path
    overrides: tuple[str, ...]
    config: Config
    needs: tuple[Path, ...]
    probes: tuple[PlannedProbe, ...]

    @property
    def is_done(self) -> bool:
        """Whether it was trained to its end.

        Raises:
            UserError: the folder holds a run of another recipe.
        """
        state = self.folder / "checkpoints" / STEP.format(self.config.optim.steps) / "state.json"
        try:
            saved = json.loads(state.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        changes = [
            change
            for change in recipe_changes(with_defaults(saved["config"]), settings_of(self.config))
            # a run pins the checkpoint that it was given by its run's folder
            if not re.match(r"(teacher|init)\.checkpoint was ", change)
        ]
        if changes:
            raise UserError(
                f"{self.folder}: found a finished run of another recipe ({'; '.join(changes)}), "
                "expected one of this study; remove the folder, or name another with --runs"
            )
        return True


def plan_study(name: str, study: Study, runs: Path) -> list[PlannedRun]:
    """All runs of a study, each after those that it needs.

    Args:
        name: the study's.
        study: what to run.
        runs: the folder of all studies' runs.

    Raises:
        UserError: settings that the config refuses.
    """
    order = list(dict.fromkeys(v for variant in study.variants for v in study.order_of(variant)))
    return [
        _plan_run(name, study, variant, seed, runs) for variant in order for seed in study.seeds
    ]


def _plan_run(name: str, study: Study, variant: str, seed: int, runs: Path) -> PlannedRun:
    def folder_of(other: str) -> Path:
        return runs / name / other / f"seed{seed}"

    folder, needs = folder_of(variant), {other: folder_of(other) for other in study.needs(variant)}
    overrides = [
        *study.settings(variant, needs),
        f"seed={seed}",
        f"output={json.dumps(str(folder))}",
    ]
    if study.probe_every:
        overrides += [f"checkpoint.{key}={study.probe_every}" for key in ("every", "keep_every")]
    try:
        config = load_config(study.config, overrides)
    except UserError as error:
        raise UserError(f"variants.{variant}: {error}") from None
    probes = tuple(_probes(study, variant, folder, config.optim.steps))
    file, before = Path(study.config), tuple(needs.values())
    return PlannedRun(variant, seed, folder, file, tuple(overrides), config, before, probes)


def _probes(study: Study, variant: str, folder: Path, steps: int) -> Iterator[PlannedProbe]:
    every = study.probe_every or steps
    first = next(iter(study.variants))
    for step in sorted({*range(every, steps + 1, every), steps}):
        for name, options in study.probes.items():
            own = list(options)
            if study.baselines and variant == first and step == steps:
                own += ["--baselines", ",".join(study.baselines)]
            # Studies that share a run may give their probes of one name other options.
            which = hashlib.sha256(json.dumps(own).encode()).hexdigest()[:8]
            yield PlannedProbe(
                name,
                step,
                folder / "checkpoints" / STEP.format(step),
                folder / "probes" / f"{name}_{step}_{which}",
                tuple(own),
            )
