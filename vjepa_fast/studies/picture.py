"""A study's picture: scores by variant, along the study's axis, or as the runs went on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vjepa_fast.evaluation.kinds import PRETRAINED
from vjepa_fast.studies.results import Cost, Score, flop_unit, spread
from vjepa_fast.studies.study import Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Series = list[tuple[float, float, float]]  # x, mean, standard deviation or 0


def draw(study: Study, scores: Sequence[Score], costs: Sequence[Cost], path: Path) -> None:
    """Draw a panel for each label and save it.

    With `probe_every`, scores are drawn over the clips seen and, below, over the FLOPs; with an
    axis, over its numbers; with several shares of labels, over these; otherwise as a bar for each
    variant.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    labels = list(dict.fromkeys(score.label for score in scores))
    columns = min(len(labels), 2)
    panels = 2 if study.probe_every else 1  # of a label, one below the other
    rows = panels * -(-len(labels) // columns)
    shares = len({score.share for score in scores}) > 1
    bars = not (study.axis or study.probe_every or shares)
    height = 1.4 + 0.32 * _bars(scores, labels[0]) if bars else 3.4
    size = (1.0 + 4.8 * columns, 0.4 + height * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for i, label in enumerate(labels):
        own = [score for score in scores if score.label == label]
        row, column = i // columns * panels, i % columns
        if study.probe_every:
            for panel, by in enumerate(("clips", "flops")):
                _draw_progress(axes[row + panel, column], own, costs, by)
        elif study.axis:
            _draw_axis(axes[row, column], own, study)
        elif shares:
            _draw_shares(axes[row, column], own)
        else:
            _draw_bars(axes[row, column], own, study)
        axes[row, column].set_title(label)
    for empty in axes.flat:
        if not empty.has_data():
            empty.remove()
    figure.suptitle(study.title)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _kind(score: Score) -> str:
    """What tells scores of one variant apart, other than the seed."""
    parts = [] if score.share == 1 else [f"{100 * score.share:g} %"]
    return " ".join([score.probe, *parts])


def _bars(scores: Sequence[Score], label: str) -> int:
    return len({(s.name, _kind(s)) for s in scores if s.label == label})


def _series(scores: Sequence[Score], place: Callable[[Score], float]) -> Series:
    """Mean and deviation over seeds at each place, in its order."""
    places: dict[float, list[float]] = {}
    for score in scores:
        places.setdefault(place(score), []).append(score.value)
    found = []
    for x, values in sorted(places.items()):
        own = spread(values)
        found.append((x, own.mean, own.std if own.count > 1 else 0.0))
    return found


def _plot(axes: Axes, series: Series, name: str) -> None:
    x, mean, std = zip(*series, strict=True)
    axes.errorbar(x, mean, yerr=std, marker="o", markersize=4, capsize=3, label=name)


def _finish(axes: Axes, x: str) -> None:
    axes.set(xlabel=x, ylabel="score on the test videos")
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))  # R² may be negative
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def _draw_axis(axes: Axes, scores: Sequence[Score], study: Study) -> None:
    trained = [score for score in scores if score.features == PRETRAINED]
    for kind in dict.fromkeys(map(_kind, trained)):
        own = [score for score in trained if _kind(score) == kind]
        _plot(axes, _series(own, lambda score: study.axis.values[score.variant]), kind)
    for name, mean in _means([s for s in scores if s.features != PRETRAINED]):
        axes.axhline(mean, color="grey", linestyle=":", label=name)
    if study.axis.log:
        axes.set_xscale("log")
    _finish(axes, study.axis.name)


def _draw_shares(axes: Axes, scores: Sequence[Score]) -> None:
    for name in dict.fromkeys((s.name, s.probe) for s in scores):
        own = [s for s in scores if (s.name, s.probe) == name]
        _plot(axes, _series(own, lambda score: 100 * score.share), ", ".join(name))
    axes.set_xscale("log")
    axes.minorticks_off()
    ticks = sorted({100 * score.share for score in scores})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    _finish(axes, "labels (%)")


def _draw_progress(axes: Axes, scores: Sequence[Score], costs: Sequence[Cost], by: str) -> None:
    total = {cost.variant: getattr(cost, by) for cost in costs}
    last = {v: max(s.step for s in scores if s.variant == v) for v in {s.variant for s in scores}}
    unit, divisor = ("clips seen", 1.0) if by == "clips" else flop_unit(costs)

    def place(score: Score) -> float:
        return total[score.variant] * score.step / last[score.variant] / divisor

    trained = [score for score in scores if score.features == PRETRAINED]
    for name in dict.fromkeys(f"{s.variant}, {_kind(s)}" for s in trained):
        _plot(
            axes, _series([s for s in trained if f"{s.variant}, {_kind(s)}" == name], place), name
        )
    axes.locator_params(axis="x", nbins=6)  # more numbers of clips would touch
    axes.xaxis.set_major_formatter("{x:,g}")
    _finish(axes, unit)


def _draw_bars(axes: Axes, scores: Sequence[Score], study: Study) -> None:
    order = list(dict.fromkeys([*study.variants, *(s.name for s in scores)]))
    kinds = list(dict.fromkeys(map(_kind, scores)))
    names, means, deviations, colors = [], [], [], []
    for name in order:
        for kind in kinds:
            own = [s.value for s in scores if (s.name, _kind(s)) == (name, kind)]
            if own:
                found = spread(own)
                names.append(name if len(kinds) == 1 else f"{name}, {kind}")
                means.append(found.mean)
                deviations.append(found.std if found.count > 1 else 0.0)
                colors.append(f"C{kinds.index(kind)}" if name in study.variants else "0.7")
    places = range(len(names), 0, -1)
    axes.barh(places, means, xerr=deviations, color=colors, capsize=3)
    axes.set_yticks(places, names)
    axes.set_xlabel("score on the test videos")
    axes.grid(alpha=0.3, axis="x")


def _means(scores: Sequence[Score]) -> list[tuple[str, float]]:
    found: dict[str, list[float]] = {}
    for score in scores:
        found.setdefault(f"{score.name}, {_kind(score)}", []).append(score.value)
    return [(name, spread(values).mean) for name, values in found.items()]
