"""Draws the picture of bench/throughput.py: the milliseconds of each part beside its roofline."""

from __future__ import annotations

from pathlib import Path

from common import picture, spread_text
from step.report import NAMES

BARS = (  # key, label, color, height, offset
    ("baseline_ms", "baseline (plain PyTorch)", "#fdae6b", 0.36, 0.19),
    ("ours_ms", "ours", "#3182bd", 0.36, -0.19),
)


def draw(result: dict, path: Path) -> None:
    """A pair of bars for each part, and a black line at its roofline bound."""
    rows = result["parts"]
    ys = range(len(rows), 0, -1)
    with picture(path, (9, 4.8), grid="x") as (figure, axes):
        for key, label, color, height, offset in BARS:
            values = [row[key] for row in rows]
            at = [y + offset for y in ys]
            axes.barh(at, values, height, color=color, label=label)
            for value, y in zip(values, at, strict=True):
                axes.annotate(
                    f"{value:.1f}" if value >= 0.95 else f"{value:.2f}",
                    (value, y),
                    xytext=(4, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=8,
                )
        for row, y in zip(rows, ys, strict=True):
            label = "roofline bound" if y == len(rows) else None
            axes.plot([row["roofline_ms"]] * 2, [y - 0.4, y + 0.4], "k-", linewidth=2, label=label)
        axes.set_yticks(list(ys), [NAMES[row["part"]] for row in rows])
        axes.set_xlim(0, 1.1 * max(max(row["baseline_ms"], row["ours_ms"]) for row in rows))
        axes.set_xlabel("ms of a step, with a device sync after each part")
        axes.legend(loc="lower right", frameon=False, fontsize=9)
        rates = result["rates"]
        figure.suptitle(
            f"{result['config']}, {result['clips']} clips, {result['precision']}, "
            f"{result['device']}; whole step, baseline / ours: "
            f"{spread_text(result['ratio_spread'], 2, unit=' x')}\n"
            f"roofline of this run: {rates['gemm_gflop_per_s']['p50']:.0f} GFLOP/s (large GEMM), "
            f"{rates['copy_gb_per_s']['p50']:.1f} GB/s (large copy)",
            fontsize=9,
        )
