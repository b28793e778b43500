"""Draws a run's metrics as curves, for RUN/curves.png and `vjepa-fast report`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vjepa_fast.training.monitoring.collapse import STD_FLOOR
from vjepa_fast.training.monitoring.writer import read_metrics
from vjepa_fast.training.timers import ALL_PARTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Panel(NamedTuple):
    """One chart over the step.

    Attributes:
        title: title above the chart.
        names: keys of metrics.jsonl, one per curve.
        log: whether the axis of the values is logarithmic.
        from_zero: whether that axis begins at zero.
        count: whether the values are whole numbers, so that the axis has no others.
        best: whether to mark the first one of the largest values.
    """

    title: str
    names: tuple[str, ...]
    log: bool = False
    from_zero: bool = True
    count: bool = False
    best: bool = False


PANELS = (
    Panel("loss (falls, then may rise: the targets sharpen)", ("loss",), from_zero=False),
    Panel("probe of the labels", ("probe_accuracy", "probe_r2"), from_zero=False, best=True),
    Panel(
        "gradient norm before clipping",
        ("grad_norm_encoder", "grad_norm_predictor", "grad_norm_model"),
        log=True,
    ),
    Panel(f"std across clips, same position (collapse: < {STD_FLOOR})", ("std_across_clips",)),
    Panel("RankMe of pooled target features", ("rank_me",)),
    Panel("learning rate", ("lr",)),
    Panel("clips per second", ("clips_per_second",)),
    Panel("fraction of time waiting for data", ("data_wait",)),
    Panel("variance of target features", ("target_variance",)),
    Panel("relative distance of encoder and teacher", ("teacher_distance",)),
    Panel("skipped steps", ("skipped_steps",), count=True),
    Panel("weight decay", ("weight_decay",)),
    Panel("EMA momentum", ("momentum",), from_zero=False),
    Panel("ms per step by part", tuple(f"ms_{part}" for part in ALL_PARTS)),
)
OVERVIEW = PANELS[:8]  # in RUN/curves.png, or those of a run without a probe:
WITHOUT_PROBE = (PANELS[0], *PANELS[2:7])
FINETUNE_OVERVIEW = tuple(
    next(panel for panel in PANELS if name in panel.names)
    for name in ("loss", "grad_norm_model", "lr", "clips_per_second", "data_wait", "ms_forward")
)


def points(rows: Sequence[dict], name: str) -> list[tuple[int, float]]:
    """(step, value) of every row that has the name."""
    return [(row["step"], row[name]) for row in rows if isinstance(row.get(name), int | float)]


def draw_panel(axes: Axes, panel: Panel, rows: Sequence[dict]) -> bool:
    """Draw a panel's curves; the legend has their last values.

    Values that are not finite (on a logarithmic axis: not positive) are left out and counted in
    the legend.

    Args:
        axes: empty matplotlib axes.
        panel: what to draw.
        rows: rows of metrics.jsonl.

    Returns:
        whether there was any value to draw.
    """
    drawn = False
    for name in panel.names:
        found = points(rows, name)
        valid = [(s, v) for s, v in found if math.isfinite(v) and (v > 0 or not panel.log)]
        if not valid:
            continue
        label = f"{name} {valid[-1][1]:.4g}"
        if len(valid) < len(found):
            label += f" ({len(found) - len(valid)} values not drawable)"
        if panel.best:
            step, best = max(valid, key=lambda point: point[1])
            label += f", best {best:.4g} after {step + 1} steps"
            axes.plot(step, best, "o", color="C3", fillstyle="none", clip_on=False)
        style = "." * (len(valid) < 30) + "-"
        # a count is mostly zero, and would lie half below the axis
        axes.plot(*zip(*valid, strict=True), style, label=label, clip_on=not panel.count)
        drawn = True
    axes.set(title=panel.title, xlabel="step", yscale="log" if panel.log else "linear")
    axes.set_xlim(0, max((row["step"] for row in rows), default=0) or 1)
    axes.grid(alpha=0.3)
    if drawn:
        axes.legend(fontsize="small")
        if panel.from_zero and not panel.log:
            highest = max(max(line.get_ydata()) for line in axes.lines)
            # alone, matplotlib puts an axis around values that are all zero, below zero as well
            axes.set_ylim(0, None if highest > 0 else 1)
        if panel.count:
            axes.yaxis.get_major_locator().set_params(integer=True)
    return drawn


def draw_curves(run: Path, panels: Sequence[Panel] | None = None) -> Path:
    """Draw RUN/metrics.jsonl to RUN/curves.png, by default as a pretraining's; returns its path."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = read_metrics(run / "metrics.jsonl")
    if panels is None:
        probed = any(points(rows, name) for name in OVERVIEW[1].names)
        panels = OVERVIEW if probed else WITHOUT_PROBE
    width = len(panels) // 2
    figure, axes = plt.subplots(2, width, figsize=(4.6 * width, 6.5), layout="constrained")
    for axis, panel in zip(axes.flat, panels, strict=True):
        draw_panel(axis, panel, rows)
    figure.suptitle(str(run))
    path = run / "curves.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
