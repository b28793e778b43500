"""The JSON file of bench/throughput.py, and its tables for people.

Schema; a spread is {"p20", "p50", "p80"} over rounds:

    config, data, compile, zero, clips, precision, steps     what was timed
    device, cpu, cores, …, commit, clock, threads            where (`common.describe`)
    check    {losses: [float], largest_relative_difference: {loss, gradient_norm, ema_distance}}
    rates    {gemm_gflop_per_s: spread, copy_gb_per_s: spread}
    flops_per_clip
    sides    {"baseline" | "ours" | "peer": {ms: spread, clips_per_s, fraction_of_gemm: spread,
             mfu: float | null, wait_ms: spread, step_memory_bytes: int | null}}
    ratio, ratio_spread                                      baseline's time over ours
    peer     {repository, commit, parameters, parameters_of_ours, ratio_spread,
             baseline_spread}                            with --peer
    parts    [{part, flops, bytes, bound_by: "gemm" | "bytes", roofline_ms, ours_ms, gap_ms,
             fraction_of_roofline, gflop_per_s, gb_per_s, baseline_ms, ratio}]
    gemms    {number, flops, seconds, step_flops}            without --compile
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from common import spread, spread_text
from step.clock import datasheet_flops
from step.gate import Gate
from step.measure import Measured
from step.roofline import Work
from step.trainers import PARTS
from vjepa_fast.commands.terminal import text_table

NAMES = {
    "masks": "mask sampling",
    "target": "patchify + target encoder",
    "context": "context encoder",
    "predictor": "predictor + loss",
    "backward": "backward",
    "optimizer": "clipping + AdamW",
    "ema": "EMA",
}


def gate_fields(gate: Gate) -> dict[str, Any]:
    """`check` of the schema."""
    return {"check": {"losses": gate.losses, "largest_relative_difference": gate.largest}}


def gate_text(gate: Gate) -> str:
    """That both sides train alike, and how closely."""
    losses = ", ".join(f"{loss:.6f}" for loss in gate.losses)
    gaps = ", ".join(f"{item} {gap:.1e}" for item, gap in gate.largest.items())
    return (
        f"gate passed: {len(gate.losses)} steps from the same weights, losses {losses}; largest "
        f"relative difference: {gaps}"
    )


def step_fields(measured: Measured, clips: int, flops: float, gpu: str | None) -> dict[str, Any]:
    """`rates` to `ratio_spread` of the schema.

    Args:
        clips: clips per step.
        flops: FLOPs per step, counted from the tokens of the timed steps.
        gpu: name of the GPU whose data sheet the MFU refers to; None without bf16.
    """
    times, datasheet = measured.times, datasheet_flops(gpu) if gpu else None
    medians = {name: float(np.median(values)) for name, values in times.items()}
    sides = {
        name: {
            "ms": spread(1e3 * times[name]),
            "clips_per_s": clips / medians[name],
            "fraction_of_gemm": spread(flops / times[name] / times["gemm"]),
            "mfu": flops / medians[name] / datasheet if datasheet else None,
            "wait_ms": spread(1e3 * times[f"{name}, wait"]),
            "step_memory_bytes": memory,
        }
        for name, memory in measured.memory.items()
    }
    ratio = spread(times["baseline"] / times["ours"])
    return {
        "rates": {
            "gemm_gflop_per_s": spread(times["gemm"] / 1e9),
            "copy_gb_per_s": spread(times["copy"] / 1e9),
        },
        "flops_per_clip": flops / clips,
        "sides": sides,
        "ratio_spread": ratio,
        "ratio": ratio["p50"],
    }


def peer_fields(
    times: dict[str, np.ndarray],
    repository: str,
    commit: str | None,
    parameters: dict[str, int],
    ours: dict[str, int],
) -> dict[str, Any]:
    """`peer` of the schema: its time relative to the other sides', round by round, and the trained
    parameters of its networks and of ours."""
    return {
        "repository": repository,
        "commit": commit,
        "parameters": parameters,
        "parameters_of_ours": ours,
        "ratio_spread": spread(times["peer"] / times["ours"]),
        "baseline_spread": spread(times["baseline"] / times["peer"]),
    }


def part_fields(measured: Measured, work: dict[str, Work]) -> list[dict[str, Any]]:
    """`parts` of the schema: work, roofline bound at the measured rates, and time of each part."""
    gemm, copy = (float(np.median(measured.times[name])) for name in ("gemm", "copy"))
    rows = []
    for part in PARTS:
        ours, baseline = measured.parts["ours"][part], measured.parts["baseline"][part]
        bound = work[part].seconds(gemm, copy)
        by_gemm = work[part].flops / gemm >= work[part].bytes / copy
        rows.append(
            {
                "part": part,
                "flops": work[part].flops,
                "bytes": work[part].bytes,
                "bound_by": "gemm" if by_gemm else "bytes",
                "roofline_ms": 1e3 * bound,
                "ours_ms": 1e3 * ours,
                "gap_ms": 1e3 * (ours - bound),
                "fraction_of_roofline": bound / ours,
                "gflop_per_s": work[part].flops / ours / 1e9,
                "gb_per_s": work[part].bytes / ours / 1e9,
                "baseline_ms": 1e3 * baseline,
                "ratio": baseline / ours,
            }
        )
    return rows


def rates_text(result: dict) -> str:
    """The device's rates and the FLOPs of a clip."""
    rates = result["rates"]
    return (
        f"large GEMM: {spread_text(rates['gemm_gflop_per_s'], 0, unit=' GFLOP/s')}, large copy: "
        f"{spread_text(rates['copy_gb_per_s'], unit=' GB/s')}, one clip: "
        f"{result['flops_per_clip'] / 1e9:.2f} GFLOP; median (p20 … p80)"
    )


def _side(name: str, result: dict) -> str:
    """A side's name; a peer's says whether its networks are as large as ours."""
    if name != "peer":
        return name
    own, other = (result["peer"][key] for key in ("parameters_of_ours", "parameters"))
    if own == other:
        return f"peer ({sum(other.values()):,} parameters, as ours)"
    return f"peer ({sum(other.values()):,} parameters, ours {sum(own.values()):,})"


def steps_text(result: dict) -> str:
    """The table of whole steps."""
    rows = [("whole step", "ms", "clips/s", "of the GEMM rate", "data wait, ms", "memory, MB")]
    for name, row in result["sides"].items():
        memory = row["step_memory_bytes"]
        cells = (
            spread_text(row["ms"]),
            f"{row['clips_per_s']:.1f}",
            spread_text(row["fraction_of_gemm"], 0, 100, " %"),
            spread_text(row["wait_ms"]),
            "unknown" if memory is None else f"{memory / 1e6:.0f}",
        )
        rows.append((_side(name, result), *cells))
    ratio = spread_text(result["ratio_spread"], 2, unit=" x")
    lines = [text_table(rows), f"baseline / ours, round by round: {ratio}"]
    if "peer" in result:
        peer = result["peer"]
        lines.append(
            f"peer / ours: {spread_text(peer['ratio_spread'], 2, unit=' x')}, baseline / peer: "
            f"{spread_text(peer['baseline_spread'], 2, unit=' x')}; peer: {peer['repository']}, "
            f"commit {peer['commit'] or 'unknown'}, its video normalized before the timed step"
        )
    for name, row in result["sides"].items():
        if row["mfu"] is not None:
            lines.append(f"{name}: {row['mfu']:.0%} MFU (bf16 rate of the data sheet)")
    return "\n".join(lines)


def parts_text(rows: Sequence[dict]) -> str:
    """The parts of a step beside their roofline bounds."""
    head = ("part", "GFLOP", "MB", "roofline, ms", "ours, ms", "gap, ms", "GB/s", "baseline, ms")
    cells = [(*head, "ratio")]
    keys = ("flops", "bytes", "roofline_ms", "ours_ms", "gap_ms", "baseline_ms")
    total = {key: sum(row[key] for row in rows) for key in keys}
    for row in [*rows, total | {"part": "sum", "bound_by": ""}]:
        cells.append(
            (
                NAMES.get(row["part"], row["part"]),
                f"{row['flops'] / 1e9:.2f}",
                f"{row['bytes'] / 1e6:.1f}",
                f"{row['roofline_ms']:.2f}",
                f"{row['ours_ms']:.2f}",
                f"{row['gap_ms']:.2f}",
                f"{row['gb_per_s']:.1f}" if row["bound_by"] == "bytes" else "",
                f"{row['baseline_ms']:.2f}",
                f"{row['baseline_ms'] / row['ours_ms']:.2f} x",
            )
        )
    return text_table(cells)


def gemms_text(result: dict) -> str:
    """One sentence on the step's own GEMMs."""
    gemms, step = result["gemms"], result["sides"]["ours"]["ms"]["p50"]
    rate = gemms["flops"] / gemms["seconds"] / 1e9
    fraction = gemms["flops"] / gemms["step_flops"]
    alone = 1e3 * gemms["seconds"]
    return (
        f"the {gemms['number']} GEMMs of our step hold {fraction:.0%} of its FLOPs; timed alone, "
        f"at their own shapes, they run at {rate:.0f} GFLOP/s and take {alone:.1f} ms, "
        f"{alone / step:.0%} of a whole step"
    )


def report_text(result: dict) -> str:
    """All tables."""
    blocks = [rates_text(result), steps_text(result), parts_text(result["parts"])]
    if "gemms" in result:
        blocks.append(gemms_text(result))
    return "\n\n".join(blocks)
