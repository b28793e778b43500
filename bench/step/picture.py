"""The picture that bench/throughput.py draws: where a step's milliseconds go, and their floor."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from step.report import NAMES

BARS = (  # key, label, colour, height, place
    ("baseline_ms", "straightforward implementation", "#fdae6b", 0.36, 0.19),
    ("ours_ms", "ours", "#3182bd", 0.36, -0.19),
)


def draw(result: dict, path: Path) -> None:
    """A pair of bars for each part, and a black line where its floor is."""
    rows = result["parts"]
    figure, axes = plt.subplots(figsize=(9, 4.8), layout="constrained")
    places = range(len(rows), 0, -1)
    for key, label, colour, height, shift in BARS:
        values = [row[key] for row in rows]
        at = [place + shift for place in places]
        axes.barh(at, values, height, color=colour, label=label)
        for value, y in zip(values, at, strict=True):
            axes.annotate(
                f"{value:.1f}" if value >= 0.95 else f"{value:.2f}",
                (value, y),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
    for row, place in zip(rows, places, strict=True):
        label = "floor at the measured rates" if place == len(rows) else None
        axes.plot([row["floor_ms"]] * 2, [place - 0.4, place + 0.4], "k-", linewidth=2, label=label)
    axes.set_yticks(list(places), [NAMES[row["part"]] for row in rows])
    axes.set_xlim(0, 1.1 * max(max(row["baseline_ms"], row["ours_ms"]) for row in rows))
    axes.set_xlabel("milliseconds of a step; the clock waits for the device between parts")
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    axes.legend(loc="lower right", frameon=False, fontsize=9)
    ratio, rates = result["ratio_spread"], result["rates"]
    axes.set_title(
        f"{result['config']}, {result['clips']} clips, {result['precision']}, {result['device']}: "
        f"{ratio['p50']:.2f} x ({ratio['p20']:.2f} … {ratio['p80']:.2f}) in whole steps\n"
        f"rates measured in the same run: {rates['gemm_gflop_per_s']['p50']:.0f} GFLOP/s in a "
        f"large product, {rates['copy_gb_per_s']['p50']:.1f} GB/s in a copy",
        fontsize=9,
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)
