"""Draws a probe's results: confusion matrices, and accuracy by share of the labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_CLASSES = 50  # of a confusion matrix
_WRITTEN = 12  # classes of which the matrix also has the numbers


class Matrix(NamedTuple):
    """A confusion matrix to draw.

    Attributes:
        title: above it.
        names: of the classes.
        counts: of videos, int64 [C, C], the true class is the row.
    """

    title: str
    names: Sequence[str]
    counts: np.ndarray


class Curve(NamedTuple):
    """A score by share of the labels.

    Attributes:
        label: the column.
        score: its name.
        name: kind of features.
        shares: of the labels, ascending.
        means: over draws.
        stds: over draws; NaN for one draw.
    """

    label: str
    score: str
    name: str
    shares: Sequence[float]
    means: Sequence[float]
    stds: Sequence[float]


def draw_probe(path: Path, matrices: Sequence[Matrix], curves: Sequence[Curve]) -> bool:
    """Draw all of them into one PNG file; returns whether there was anything to draw."""
    charts: dict[str, list[Curve]] = {}
    for curve in curves:
        if len(curve.shares) > 1:
            charts.setdefault(curve.label, []).append(curve)
    count = len(matrices) + len(charts)
    if not count:
        return False
    import matplotlib  # inside the function: importing it takes long

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = min(count, 2)
    rows = -(-count // columns)
    size = 6.5 if any(len(m.names) > 20 for m in matrices) else 4.5
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(columns * size * 1.15, rows * size), squeeze=False
    )
    for axis in axes.flat[count:]:
        axis.remove()
    places = iter(axes.flat)
    for matrix in matrices:
        _draw_matrix(next(places), matrix)
    for label, own in charts.items():
        _draw_curves(next(places), label, own)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return True


def _draw_matrix(axes: Axes, matrix: Matrix) -> None:
    """Each row in fractions of its class."""
    counts = matrix.counts
    fractions = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    image = axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    axes.figure.colorbar(image, ax=axes, fraction=0.046, label="fraction of the true class")
    places, names = range(len(counts)), [_short(name) for name in matrix.names]
    small = {"fontsize": 8 if len(counts) <= 20 else 5}
    upright = all(len(name) <= 2 for name in names)
    axes.set_xticks(places, names, rotation=0 if upright else 90, **small)
    axes.set_yticks(places, names, **small)
    axes.set_xlabel("guess")
    axes.set_ylabel("true class")
    axes.set_title(matrix.title, fontsize=10)
    if len(counts) <= _WRITTEN:
        for row, column in np.argwhere(counts):
            color = "white" if fractions[row, column] > 0.5 else "black"
            text = str(counts[row, column])
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=color)


def _draw_curves(axes: Axes, label: str, curves: Sequence[Curve]) -> None:
    for curve in curves:
        percent = [100 * share for share in curve.shares]
        axes.errorbar(
            percent, curve.means, np.nan_to_num(curve.stds), marker="o", capsize=3, label=curve.name
        )
    axes.set_xscale("log")
    axes.set_xticks(percent, [f"{share:g}" for share in percent])
    axes.minorticks_off()
    axes.set_xlabel("labels, %")
    axes.set_ylabel(f"{curves[0].score}, mean and std over draws")
    axes.set_title(label, fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _short(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:23]}…"
