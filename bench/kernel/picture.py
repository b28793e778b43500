"""The picture that bench/kernels.py draws of its rows."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

STYLES = {  # kind of provider: how its dot looks
    "as public trainers write it": {"color": "#8c2d04", "marker": "s", "s": 34},
    "otherwise in eager PyTorch": {"color": "#fd8d3c", "marker": "o", "s": 30},
    "under torch.compile": {"color": "#3182bd", "marker": "^", "s": 34},
    "ours": {"color": "black", "marker": "D", "s": 42},
}


def kind(row: dict) -> str:
    """Which of STYLES a row is drawn in."""
    public, other, compiled, ours = STYLES
    if row["provider"] == ours:
        return ours
    if row["provider"].endswith(", compiled"):
        return compiled
    return public if row["baseline"] else other


def draw(rows: Sequence[dict], path: Path) -> None:
    """One line for each op, shape and pass, one dot for each provider at its share of the copy."""
    lines = list(dict.fromkeys((row["op"], row["shape"], row["pass"]) for row in rows))
    figure, axes = plt.subplots(figsize=(11, 1.6 + 0.27 * len(lines)), layout="constrained")
    for style, look in STYLES.items():
        dots = [row for row in rows if kind(row) == style]
        if not dots:
            continue
        places = [lines.index((row["op"], row["shape"], row["pass"])) for row in dots]
        shares = [100 * row["share_of_copy"] for row in dots]
        axes.scatter(shares, places, label=style, zorder=3, alpha=0.85, linewidths=0, **look)
    for above, (before, after) in enumerate(itertools.pairwise(lines)):
        if before[0] != after[0]:
            axes.axhline(above + 0.5, color="0.8", linewidth=0.8)
    axes.axvline(100, color="0.4", linewidth=1, linestyle="--")
    axes.set_yticks(range(len(lines)), [f"{op}: {shape}  {part}" for op, shape, part in lines])
    axes.tick_params(axis="y", labelsize=8)
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.set_xlim(left=0)
    axes.grid(axis="x", color="0.9")
    axes.set_xlabel(
        "bytes the op has to move, per second, in % of a copy (further right is faster)"
    )
    first = rows[0]
    ours = "Triton kernels" if first["triton_kernels"] else "PyTorch fall-back"
    axes.set_title(
        f"{first['device']}, {first['clips']} clips, {first['dtype']}; ours: {ours}; a copy moves "
        f"{first['copy_gb_per_s']:.0f} GB/s",
        fontsize=10,
    )
    figure.legend(loc="outside lower center", ncols=len(STYLES), frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)
