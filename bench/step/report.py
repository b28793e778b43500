"""What bench/throughput.py makes of its measurements: rows for the JSON file, tables for people."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from step.roofline import Work
from step.sides import PARTS

from vjepa_fast.commands.terminal import text_table

NAMES = {
    "masks": "mask sampling",
    "target": "patchify + target encoder",
    "context": "context encoder",
    "predictor": "predictor + loss",
    "backward": "backward",
    "optimiser": "clipping + AdamW",
    "EMA": "EMA",
}


def spread(values: np.ndarray) -> dict[str, float]:
    """Median, and the values that a fifth lies below and above."""
    low, middle, high = np.percentile(values, (20, 50, 80)).tolist()
    return {"p20": low, "p50": middle, "p80": high}


def side_rows(
    times: dict[str, np.ndarray],
    memory: dict[str, int | None],
    flops: float,
    clips: int,
    datasheet: float | None,
) -> dict[str, dict]:
    """All sides' whole steps. The share of the GEMM rate is taken turn by turn."""
    return {
        name: {
            "ms": spread(1e3 * times[name]),
            "clips_per_s": clips / float(np.median(times[name])),
            "share_of_gemm": spread(flops / times[name] / times["gemm"]),
            "share_of_datasheet": (
                flops / float(np.median(times[name])) / datasheet if datasheet else None
            ),
            "wait_ms": spread(1e3 * times[f"{name}, wait"]),
            "step_memory_bytes": memory[name],
        }
        for name in memory
    }


def peer_row(
    times: dict[str, np.ndarray],
    commit: str | None,
    parameters: dict[str, int],
    ours: dict[str, int],
) -> dict:
    """What a peer's steps take beside the other two sides', turn by turn, and its networks' trained
    weights beside ours."""
    return {
        "commit": commit,
        "parameters": parameters,
        "parameters_of_ours": ours,
        "ratio_spread": spread(times["peer"] / times["ours"]),
        "baseline_spread": spread(times["baseline"] / times["peer"]),
    }


def part_rows(
    parts: dict[str, dict[str, float]], work: dict[str, Work], gemm: float, copy: float
) -> list[dict]:
    """The roofline: of each part the work, its floor at the measured rates, and the times."""
    rows = []
    for part in PARTS:
        ours, baseline = parts["ours"][part], parts["baseline"][part]
        floor = work[part].floor(gemm, copy)
        bound = "products" if work[part].flops / gemm >= work[part].bytes / copy else "bytes"
        rows.append(
            {
                "part": part,
                "flops": work[part].flops,
                "bytes": work[part].bytes,
                "bound": bound,
                "floor_ms": 1e3 * floor,
                "ours_ms": 1e3 * ours,
                "gap_ms": 1e3 * (ours - floor),
                "share_of_floor": floor / ours,
                "gflop_per_s": work[part].flops / ours / 1e9,
                "gb_per_s": work[part].bytes / ours / 1e9,
                "baseline_ms": 1e3 * baseline,
                "ratio": baseline / ours,
            }
        )
    return rows


def _span(values: dict[str, float], digits: int = 1, scale: float = 1.0, unit: str = "") -> str:
    low, middle, high = (f"{scale * values[p]:.{digits}f}" for p in ("p20", "p50", "p80"))
    return f"{middle}{unit} ({low} … {high})"


def rates_text(result: dict) -> str:
    """The device's rates and the step's operations."""
    rates = result["rates"]
    return (
        f"a large product: {_span(rates['gemm_gflop_per_s'], 0, unit=' GFLOP/s')}, a large copy: "
        f"{_span(rates['copy_gb_per_s'], unit=' GB/s')}, a clip: "
        f"{result['flops_per_clip'] / 1e9:.2f} GFLOP; medians (20 % … 80 %)"
    )


def _side(name: str, result: dict) -> str:
    """A side's name; a peer's says whether its networks are as large as ours."""
    if name != "peer":
        return name
    own, other = (result["peer"][key] for key in ("parameters_of_ours", "parameters"))
    if own == other:
        return f"peer ({sum(other.values()):,} weights, as ours)"
    return f"peer ({sum(other.values()):,} weights, ours {sum(own.values()):,})"


def whole_text(result: dict) -> str:
    """The table of whole steps."""
    rows = [("a step", "ms", "clips/s", "of the GEMM rate", "data wait, ms", "takes, MB")]
    for name, row in result["sides"].items():
        memory = row["step_memory_bytes"]
        cells = (
            _span(row["ms"]),
            f"{row['clips_per_s']:.1f}",
            _span(row["share_of_gemm"], 0, 100, " %"),
            _span(row["wait_ms"]),
            "unknown" if memory is None else f"{memory / 1e6:.0f}",
        )
        rows.append((_side(name, result), *cells))
    lines = [
        text_table(rows),
        f"ratio, turn by turn: {_span(result['ratio_spread'], 2, unit=' x')}",
    ]
    if "peer" in result:
        peer = result["peer"]
        lines.append(
            f"peer / ours: {_span(peer['ratio_spread'], 2, unit=' x')}, baseline / peer: "
            f"{_span(peer['baseline_spread'], 2, unit=' x')}; peer: facebookresearch/jepa, commit "
            f"{peer['commit'] or 'unknown'}, its pixels normalised before the step"
        )
    for name, row in result["sides"].items():
        if row["share_of_datasheet"] is not None:
            lines.append(f"{name}: {row['share_of_datasheet']:.0%} of the data sheet's rate")
    return "\n".join(lines)


def parts_text(rows: Sequence[dict]) -> str:
    """The roofline as a table."""
    cells = [("part", "GFLOP", "MB", "floor", "ours", "gap", "GB/s", "baseline", "ratio")]
    sums = dict.fromkeys(("flops", "bytes", "floor_ms", "ours_ms", "gap_ms", "baseline_ms"), 0.0)
    for row in rows:
        sums = {name: value + row[name] for name, value in sums.items()}
    sums |= {"part": "all", "bound": ""}
    for row in [*rows, sums]:
        bandwidth = f"{row['gb_per_s']:.1f}" if row["bound"] == "bytes" else ""
        cells.append(
            (
                NAMES.get(row["part"], row["part"]),
                f"{row['flops'] / 1e9:.2f}",
                f"{row['bytes'] / 1e6:.1f}",
                f"{row['floor_ms']:.2f}",
                f"{row['ours_ms']:.2f}",
                f"{row['gap_ms']:.2f}",
                bandwidth,
                f"{row['baseline_ms']:.2f}",
                f"{row['baseline_ms'] / row['ours_ms']:.2f} x",
            )
        )
    return text_table(cells)


def products_text(result: dict) -> str:
    """One sentence on the step's own products."""
    products, step = result["products"], result["sides"]["ours"]["ms"]["p50"]
    rate = products["flops"] / products["seconds"] / 1e9
    share = products["flops"] / products["step_flops"]
    alone = 1e3 * products["seconds"]
    return (
        f"\nour step's {products['number']} products hold {share:.0%} of its operations; each "
        f"alone, at its own shape, they run at {rate:.0f} GFLOP/s and take {alone:.1f} ms, "
        f"{alone / step:.0%} of a step"
    )
