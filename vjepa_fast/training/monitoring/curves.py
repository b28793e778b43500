"""Draws a run's metrics as RUN/curves.png."""

from __future__ import annotations

from pathlib import Path

from vjepa_fast.training.monitoring.writer import read_metrics

LOWER_PANELS = (
    ("gradient norm", ("grad_norm_encoder", "grad_norm_predictor"), "log"),
    ("std across clips, same position", ("std_across_clips",), "linear"),
    ("RankMe of pooled target features", ("rank_me",), "linear"),
    ("learning rate", ("lr",), "linear"),
    ("clips per second", ("clips_per_second",), "linear"),
)


def draw_curves(run: Path) -> Path:
    """Draw RUN/metrics.jsonl to RUN/curves.png; returns its path."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = read_metrics(run / "metrics.jsonl")
    figure, axes = plt.subplots(2, 3, figsize=(13, 6.5), layout="constrained")
    panels = (
        ("loss (falls, then may rise: the targets sharpen)", ("loss",), "linear"),
        *LOWER_PANELS,
    )
    for axis, (title, names, scale) in zip(axes.flat, panels, strict=True):
        for name in names:
            points = [(row["step"], row[name]) for row in rows if name in row]
            marker = "." if len(points) < 30 else ""
            axis.plot(*zip(*points, strict=True) if points else ([], []), marker=marker, label=name)
        axis.set(title=title, xlabel="step", yscale=scale)
        axis.grid(alpha=0.3)
        if len(names) > 1:
            axis.legend(fontsize="small")
        if scale == "linear" and title.split()[0] in ("std", "clips", "RankMe"):
            axis.set_ylim(bottom=0)
    figure.suptitle(str(run))
    path = run / "curves.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
