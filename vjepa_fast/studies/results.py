"""The scores of a study's runs, and their mean and standard deviation over seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vjepa_fast.evaluation.kinds import PRETRAINED
from vjepa_fast.evaluation.results import mean_and_std
from vjepa_fast.studies.plan import PlannedProbe, PlannedRun
from vjepa_fast.training.monitoring.collapse import STD_FLOOR
from vjepa_fast.training.monitoring.curves import points
from vjepa_fast.training.monitoring.writer import read_metrics

_FLOP_UNITS = ("EFLOP", 1e18), ("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9), ("MFLOP", 1e6)


@dataclass(frozen=True)
class Score:
    """A score of a run's checkpoint; of several draws of labels, their mean."""

    variant: str
    seed: int
    step: int
    probe: str
    label: str
    share: float
    features: str
    measure: str
    value: float

    @property
    def name(self) -> str:
        """Whose it is: the variant's, or a baseline's."""
        return self.variant if self.features == PRETRAINED else f"baseline: {self.features}"


@dataclass(frozen=True)
class Cost:
    """What a run took, its last measures of collapse (NaN if there are none), and the collapse
    monitor's verdict on them, which does not judge runs on pixels."""

    variant: str
    seed: int
    clips: int
    flops: float
    hours: float
    rank_me: float
    std_across_clips: float
    collapsed: bool


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds; NaN of one seed."""

    mean: float
    std: float
    count: int

    def __str__(self) -> str:
        text = f"{self.mean:.3f}"
        return text if math.isnan(self.std) else f"{text} ± {self.std:.3f}"


def flop_unit(costs: Sequence[Cost]) -> tuple[str, float]:
    """The unit for a table of these costs: its name, and its FLOPs. Of the dearest run it is the
    largest unit that gives 1 or more."""
    most = max((cost.flops for cost in costs), default=0.0)
    return next((unit for unit in _FLOP_UNITS if most >= unit[1]), _FLOP_UNITS[-1])


def spread(values: Iterable[float]) -> Spread:
    """Of at least one value."""
    found = list(values)
    return Spread(*mean_and_std(found), len(found))


def scores_of(runs: Sequence[PlannedRun]) -> list[Score]:
    """All scores of the probes that are done."""
    return [
        score
        for run in runs
        for probe in run.probes
        if probe.result.exists()
        for score in _scores(run, probe)
    ]


def _scores(run: PlannedRun, probe: PlannedProbe) -> list[Score]:
    found = json.loads(probe.result.read_text(encoding="utf-8"))
    scores = []
    for row in found["results"]:
        measure = "r2" if "r2" in row["test"] else "top1"
        value = row["test"][measure]["mean"]
        if value is None:
            continue
        own = run.variant, run.seed, probe.step, probe.name
        scores.append(Score(*own, row["label"], row["share"], row["features"], measure, value))
    return scores


def cost_of(run: PlannedRun, clip_flops: float) -> Cost:
    """What a finished run took, of which a clip takes so many FLOPs."""
    rows = read_metrics(run.folder / "metrics.jsonl")
    clips = run.config.optim.steps * run.config.optim.global_batch
    last = {name: points(rows, name)[-1:] for name in ("rank_me", "std_across_clips")}
    seconds, before = 0.0, 0
    for row, rate in points(rows, "clips_per_second"):
        done = row + 1
        seconds += (done - before) * run.config.optim.global_batch / rate
        before = done
    hours = seconds / 3600 if before else math.nan
    rank_me, std = (values[0][1] if values else math.nan for values in last.values())
    collapsed = std < STD_FLOOR and run.config.objective == "features"
    return Cost(run.variant, run.seed, clips, clips * clip_flops, hours, rank_me, std, collapsed)


def machine_of(folder: Path) -> str:
    """Processor and versions that a run was trained with, in words; "" if it does not say."""
    try:
        found = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    names = ("device", "cpu", "torch", "commit")
    return ", ".join(f"{name} {found[name]}" for name in names if found.get(name))
