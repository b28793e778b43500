"""Draws the picture of bench/kernels.py."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from common import picture

STYLES = {  # kind of provider: its marker
    "baseline (as public trainers)": {"color": "#8c2d04", "marker": "s", "s": 34},
    "other eager PyTorch": {"color": "#fd8d3c", "marker": "o", "s": 30},
    "torch.compile": {"color": "#3182bd", "marker": "^", "s": 34},
    "ours": {"color": "black", "marker": "D", "s": 42},
}


def kind(row: dict) -> str:
    """The key of STYLES for a row."""
    baseline, other, compiled, ours = STYLES
    if row["provider"] == ours:
        return ours
    if row["provider"].endswith(", compiled"):
        return compiled
    return baseline if row["baseline"] else other


def draw(rows: Sequence[dict], path: Path) -> None:
    """A line for each op, shape and pass; a marker for each provider at its fraction of a copy's
    bandwidth."""
    lines = list(dict.fromkeys((row["op"], row["shape"], row["pass"]) for row in rows))
    size = (11, 1.8 + 0.27 * len(lines))
    with picture(path, size, grid="x") as (figure, axes):
        for style, look in STYLES.items():
            dots = [row for row in rows if kind(row) == style]
            if not dots:
                continue
            ys = [lines.index((row["op"], row["shape"], row["pass"])) for row in dots]
            percent = [100 * row["fraction_of_copy"] for row in dots]
            axes.scatter(percent, ys, label=style, zorder=3, alpha=0.85, linewidths=0, **look)
        for above, (before, after) in enumerate(itertools.pairwise(lines)):
            if before[0] != after[0]:
                axes.axhline(above + 0.5, color="0.8", linewidth=0.8)
        axes.axvline(100, color="0.4", linewidth=1, linestyle="--")
        axes.set_yticks(range(len(lines)), [f"{op}: {shape}  {part}" for op, shape, part in lines])
        axes.tick_params(axis="y", labelsize=8)
        axes.set_ylim(len(lines) - 0.4, -0.6)
        axes.set_xlim(left=0)
        axes.set_xlabel("bandwidth of the least bytes, % of a copy (further right is faster)")
        first = rows[0]
        ours = "Triton kernels" if first["triton_kernels"] else "PyTorch fallback"
        figure.suptitle(
            f"{first['device']}, {first['clips']} clips, {first['dtype']}; ours: {ours}; copy: "
            f"{first['copy_gb_per_s']:.0f} GB/s",
            fontsize=10,
        )
        figure.legend(loc="outside lower center", ncols=len(STYLES), frameon=False, fontsize=9)
