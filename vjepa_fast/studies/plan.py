"""The runs and the probes of a study; all configs are checked before any run starts."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from vjepa_fast.config import Config, load_config
from vjepa_fast.errors import UserError
from vjepa_fast.studies.reuse import (
    checkpoint_of,
    finished_elsewhere,
    run_folder,
    state_of,
    videos_of,
)
from vjepa_fast.studies.study import Study
from vjepa_fast.training.recipe import recipe_changes, settings_of, with_defaults


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
        """Whether its scores, by these options and of this checkpoint, are there.

        `asked` is written last, so a probe that was interrupted is not done.
        """
        try:
            asked = json.loads((self.output / "options.json").read_text(encoding="utf-8"))
            found = json.loads(self.result.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        state = self.checkpoint / "state.json"
        # A run that was deleted and trained again has newer checkpoints.
        newer = not state.exists() or state.stat().st_mtime <= self.result.stat().st_mtime
        return newer and (asked, found.get("step")) == (self.asked, self.step)

    @property
    def asked(self) -> list[str]:
        """What was probed and how, as `options.json` has it; the same where all runs are moved."""
        return [os.path.relpath(self.checkpoint, self.output), *self.options]


@dataclass(frozen=True)
class PlannedRun:
    """A run of a variant.

    Attributes:
        variant, seed: which one.
        home: its folder in the study, which also has its probes.
        folder: of the run: its home, or where another study has finished it.
        config_file: the study's.
        overrides: its --set options.
        config: with them applied.
        needs: homes of the runs that have to be done before.
        probes: of its checkpoints.
    """

    variant: str
    seed: int
    home: Path
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
            UserError: the folder holds a run of another recipe, or on other videos.
        """
        saved = state_of(self.folder, self.config.optim.steps)
        if saved is None:
            return False
        changes = [
            change
            for change in recipe_changes(with_defaults(saved["config"]), settings_of(self.config))
            # a run pins the checkpoint that it was given by its run's folder
            if not re.match(r"(teacher|init)\.checkpoint was ", change)
        ]
        if videos_of(self.config) not in (None, saved.get("videos")):
            raise UserError(
                f"{self.folder}: found a finished run on other videos than data.manifests list "
                "now, expected the same; restore the manifest, or name another folder with --runs"
            )
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
        runs: the folder of all studies' runs. A run that is finished there is taken where it is.

    Raises:
        UserError: settings that the config refuses, or a run in a folder of the study that is not
            the study's.
    """
    order = list(dict.fromkeys(v for variant in study.variants for v in study.order_of(variant)))
    planned: dict[tuple[str, int], PlannedRun] = {}
    for variant in order:
        for seed in study.seeds:
            needs = {other: planned[other, seed] for other in study.needs(variant)}
            home = run_folder(runs, name, variant, seed)
            planned[variant, seed] = _plan_run(study, variant, seed, home, needs)
    return list(planned.values())


def _plan_run(
    study: Study, variant: str, seed: int, home: Path, needs: dict[str, PlannedRun]
) -> PlannedRun:
    overrides = [
        *study.settings(variant, {name: run.folder for name, run in needs.items()}),
        f"seed={seed}",
        f"output={json.dumps(str(home))}",
    ]
    if study.probe_every:
        overrides += [f"checkpoint.{key}={study.probe_every}" for key in ("every", "keep_every")]
    try:
        config = load_config(study.config, overrides)
    except UserError as error:
        raise UserError(f"variants.{variant}: {error}") from None
    file, before = Path(study.config), tuple(run.home for run in needs.values())
    run = PlannedRun(variant, seed, home, home, file, tuple(overrides), config, before, ())
    last = config.optim.steps
    every = study.probe_every or last
    steps = sorted({*range(every, last + 1, every), last})
    folder = home if run.is_done else finished_elsewhere(config, home, steps) or home
    probes = _probes(study, variant, steps, home, folder)
    return replace(run, folder=folder, probes=tuple(probes))


def _probes(
    study: Study, variant: str, steps: list[int], home: Path, folder: Path
) -> Iterator[PlannedProbe]:
    first = next(iter(study.variants))
    for step in steps:
        for name, options in study.probes.items():
            own = list(options)
            if study.baselines and variant == first and step == steps[-1]:
                own += ["--baselines", ",".join(study.baselines)]
            checkpoint = checkpoint_of(folder, step)
            output = home / "probes" / f"{name}_{step}"
            yield PlannedProbe(name, step, checkpoint, output, tuple(own))
