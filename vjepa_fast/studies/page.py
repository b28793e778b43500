"""A study's page: question, results as tables and a picture, what it took."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from vjepa_fast.data.manifest.replaced import replaced_atomically
from vjepa_fast.errors import UserError
from vjepa_fast.evaluation.kinds import PRETRAINED
from vjepa_fast.evaluation.results import json_data
from vjepa_fast.studies.picture import draw
from vjepa_fast.studies.results import Cost, Score, Spread, flop_unit, machine_of, spread
from vjepa_fast.studies.reuse import study_of
from vjepa_fast.studies.study import Study


@dataclass(frozen=True)
class Column:
    """What a column of the table scores."""

    probe: str
    label: str
    share: float
    measure: str

    @staticmethod
    def of(score: Score) -> Column:
        """The column that a score belongs to."""
        return Column(score.probe, score.label, score.share, score.measure)

    def title(self, columns: Sequence[Column]) -> str:
        """What tells it from the others."""
        parts = [self.label]
        if len({c.probe for c in columns}) > 1:
            parts.append(self.probe)
        if len({c.share for c in columns}) > 1 or self.share < 1:
            parts.append(f"{100 * self.share:g} %")
        return ", ".join(parts) + (" (R²)" if self.measure == "r2" else "")


def write_page(
    name: str,
    study: Study,
    scores: Sequence[Score],
    costs: Sequence[Cost],
    folders: Iterable[Path],
    failed: Sequence[str],
    output: Path,
) -> Path:
    """Write NAME.md, NAME.png and NAME.json into a folder.

    Args:
        name: the study's.
        study: the question and the variants.
        scores, costs: of the runs that are done.
        folders: of these runs.
        failed: why others are not done.
        output: the folder.

    Returns:
        The page.

    Raises:
        UserError: nothing can be written there, or there is no score.
    """
    if not scores:
        raise UserError(
            f"STUDY: found no score of {name}, expected some; see why its runs failed: "
            + "; ".join(failed)
        )
    page, image, data = (output / f"{name}{suffix}" for suffix in (".md", ".png", ".json"))
    content = {
        "study": study.model_dump(mode="json"),
        "scores": [asdict(score) for score in scores],
        "costs": [json_data(asdict(cost)) for cost in costs],
        "failed": list(failed),
    }
    try:
        output.mkdir(parents=True, exist_ok=True)
        draw(study, scores, costs, image)
        with replaced_atomically(data) as file:
            file.write(json.dumps(content, indent=1) + "\n")
        with replaced_atomically(page) as file:
            file.write(_text(name, study, scores, costs, list(folders), failed))
    except OSError as error:
        raise UserError(
            f"--output: found that {output} cannot be written ({error.strerror}), expected a "
            "folder of yours; name another"
        ) from None
    return page


def _text(
    name: str,
    study: Study,
    scores: Sequence[Score],
    costs: Sequence[Cost],
    folders: Sequence[Path],
    failed: Sequence[str],
) -> str:
    seeds = len(study.seeds)
    shared = [study for study in map(study_of, folders) if study != name]
    machines = sorted({machine_of(folder) for folder in folders} - {""})
    hours = sum(cost.hours for cost in costs if math.isfinite(cost.hours))
    lines = [
        f"# {study.title}",
        "",
        "This page was written by `vjepa-fast study`.",
        "",
        f"**Question.** {study.question}",
        "",
        f"**In the literature.** {study.paper}",
        "",
        "## Results",
        "",
        f"Mean ± standard deviation over {seeds} seed{'s' * (seeds > 1)}; of each seed, the mean "
        "over its draws of labels.",
        "",
        *results_table(study, scores, costs),
        "",
        f"![{study.title}]({name}.png)",
        "",
        *(study.reading or []),
        *[""] * bool(study.reading),
        "## What was run",
        "",
        f"All runs: `{study.config}`" + "".join(f", `{s}`" for s in study.set) + ".",
        "",
        *_table(
            ("variant", "settings"),
            [
                (variant, ", ".join(f"`{s}`" for s in settings) or "as they are")
                for variant, settings in study.variants.items()
            ],
        ),
        "",
        *(f"Probe {probe}: `{' '.join(options)}`." for probe, options in study.probes.items()),
        "",
        f"Training took {hours:.1f} hours, all runs together.",
        *[f"{len(shared)} of {len(folders)} runs are those of {' and '.join(sorted({*shared}))}."]
        * bool(shared),
        *(f"Machine: {machine}." for machine in machines),
        *(f"Not done: {reason}" for reason in failed),
    ]
    return "\n".join(lines) + "\n"


def results_table(study: Study, scores: Sequence[Score], costs: Sequence[Cost]) -> list[str]:
    """The Markdown table of the last checkpoints' scores, costs and collapse."""
    last = _of_last_step(scores)
    columns = list(dict.fromkeys(map(Column.of, last)))
    unit, flops = flop_unit(costs)
    rows = []
    for features in dict.fromkeys(score.features for score in last):
        for variant in study.variants:
            own = [s for s in last if (s.features, s.variant) == (features, variant)]
            if not own:
                continue
            cells = [_mean(s.value for s in own if Column.of(s) == column) for column in columns]
            its = [cost for cost in costs if cost.variant == variant and features == PRETRAINED]
            rows.append((own[0].name, *cells, *_cost_cells(its, flops)))
    titles = [column.title(columns) for column in columns]
    return _table(("variant", *titles, "RankMe", "std across clips", "clips", unit), rows)


def _of_last_step(scores: Sequence[Score]) -> list[Score]:
    last: dict[tuple[str, int], int] = {}
    for s in scores:
        last[s.variant, s.seed] = max(s.step, last.get((s.variant, s.seed), 0))
    return [s for s in scores if s.step == last[s.variant, s.seed]]


def _mean(values: Iterable[float]) -> str:
    found = list(values)
    return str(spread(found)) if found else "–"


def _cost_cells(costs: Sequence[Cost], unit: float) -> tuple[str, str, str, str]:
    if not costs:
        return "", "", "", ""
    rank, std = (_spread(getattr(c, n) for c in costs) for n in ("rank_me", "std_across_clips"))
    collapsed = sum(cost.collapsed for cost in costs)
    verdict = f" ({collapsed} of {len(costs)} collapsed)" if collapsed else ""
    text = f"{std.mean:.2f}{verdict}" if std else "–"
    flops = f"{costs[0].flops / unit:.3g}"
    return f"{rank.mean:.1f}" if rank else "–", text, f"{costs[0].clips:,}", flops


def _spread(values: Iterable[float]) -> Spread | None:
    found = [value for value in values if math.isfinite(value)]
    return spread(found) if found else None


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]
