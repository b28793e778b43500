"""Time video decoding by PyAV, DALI, decord and torchcodec: python bench/decode.py

Encodes videos whose frames show their frame numbers. A decoder is timed only after a check that its
clips have the planned frames and the pixels of PyAV's clips. Each decoder has its own process, and
they take turns, one at a time, on the same clips. Figures are medians over the rounds.
PyAV and DALI run as in training: PyAV in processes of its own, from which the clips are copied.
"pyav alone", and decord and torchcodec if installed, decode one clip per thread, decord and
torchcodec with the same crop and resize in torch; all end with the same uint8 tensors.
CPU time is that of all processes and threads.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import count, describe, machine_text, new_file, spread, spread_text
from decoding.providers import BASELINE, OTHERS, OURS, PROVIDERS, obstacles, versions
from decoding.side import BATCH, STEP, Side, serve
from decoding.videos import ENCODERS, make_video

_KEYS = ("codec", "width", "height", "gop", "num_frames")


def machine() -> dict[str, Any]:
    """`common.describe`, and the versions of the decoders."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return describe(device) | versions()


def make_cases(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Make the videos; each with the lengths of its clips."""
    cases = []
    for codec, size, gop in product(options.codecs, options.sizes, options.gops):
        manifest, facts = make_video(folder, codec, size, gop, options.frames)
        case = {"codec": codec, "width": size[0], "height": size[1], "gop": gop, **facts}
        cases += [case | {"manifest": str(manifest), "num_frames": n} for n in options.lengths]
    return cases


def run_case(case: dict, sides: list[Side], options: argparse.Namespace) -> Iterator[dict]:
    """A row for each decoder: figures, or why there are none."""
    rounds: dict[str, list[dict]] = {side.name: [] for side in sides}
    reasons = {side.name: side.ask(case=case) for side in sides}
    at_work = [side for side in sides if not reasons[side.name]]
    batches = 1
    for number in range(options.rounds + 1):
        # Another one begins in each round.
        for side in (
            at_work[number % len(at_work or [1]) :] + at_work[: number % len(at_work or [1])]
        ):
            if not reasons[side.name]:
                figures = side.ask(batches=batches)
                if "clips_per_s" not in figures:
                    reasons[side.name] = figures
                elif number:
                    rounds[side.name].append(figures)
                elif side is at_work[0]:  # of the first round only the speed counts
                    batches = max(2, math.ceil(options.seconds * figures["clips_per_s"] / BATCH))
    for side in sides:
        side.ask(end=True)
        name = side.name
        row = {"provider": name, "baseline": name == BASELINE} | {key: case[key] for key in _KEYS}
        if reasons[name]:
            yield row | reasons[name]
            continue
        found = rounds[name]
        row |= {key: statistics.median(one[key] for one in found) for key in found[0]}
        row["cpu_ms"] = spread(np.array([one["cpu_ms_per_clip"] for one in found]))
        row |= {"batches": batches, "bytes": case["bytes"], "b_frames": case["b_frames"]}
        if name in OURS:
            row["cpu_to"] = {
                other: statistics.median(_ratios(found, rounds[other]))
                for other in OTHERS
                if rounds.get(other)
            }
        yield row


def _ratios(found: list[dict], others: list[dict]) -> list[float]:
    """Of CPU times, round by round."""
    pairs = zip(found, others, strict=False)
    return [one["cpu_ms_per_clip"] / other["cpu_ms_per_clip"] for one, other in pairs]


def _size(text: str) -> tuple[int, int]:
    """An argparse type: WIDTHxHEIGHT."""
    width, _, height = text.partition("x")
    return count(width), count(height)


def main(arguments: list[str] | None = None) -> int:
    """Make videos, check, time, print; 1 if a decoder shows wrong frames."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--codecs", nargs="+", choices=list(ENCODERS), default=list(ENCODERS))
    sizes = [(320, 240), (640, 480), (1280, 720)]
    parser.add_argument("--sizes", nargs="+", type=_size, default=sizes, help="e.g. 320x240")
    parser.add_argument(
        "--gops",
        nargs="+",
        type=count,
        default=[12, 250],
        help="frames from a key frame to the next",
    )
    parser.add_argument("--lengths", nargs="+", type=count, default=[16], help="frames per clip")
    parser.add_argument("--frames", type=count, default=300, help="of a video (default: 300)")
    parser.add_argument("--providers", nargs="+", choices=list(PROVIDERS), default=list(PROVIDERS))
    parser.add_argument("--threads", type=count, default=2, help="for PyAV: processes (default: 2)")
    parser.add_argument("--crop-size", type=count, default=224, help="pixels (default: 224)")
    parser.add_argument("--rounds", type=count, default=5, help="in turns (default: 5)")
    parser.add_argument("--seconds", type=float, default=0.5, help="of a round (default: 0.5)")
    parser.add_argument("--output", type=new_file, help="file for the results, as JSON lines")
    parser.add_argument("--serve", help=argparse.SUPPRESS)  # of a decoder's process
    options = parser.parse_args(arguments)
    if options.serve:
        serve(options.serve, options)
        return 0
    return _run_all(options)


def _run_all(options: argparse.Namespace) -> int:
    facts, wrong = machine(), 0
    print(machine_text(facts))
    print(
        f"{options.threads} decoding threads, clips of {options.crop_size} px, every {STEP}th "
        f"frame; CPU ms a clip: median (20th … 80th percentile) of {options.rounds} rounds"
    )
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        output = stack.enter_context(options.output.open("w")) if options.output else None
        sides, told = [], set()
        for name, obstacle in obstacles(options.providers).items():
            if obstacle:
                print(f"{name:11} {obstacle}")
            else:
                sides.append(stack.enter_context(Side(__file__, name, options)))
        for case in make_cases(folder, options):
            for row in run_case(case, sides, options):
                reason = row["provider"], row.get("skipped")
                if row.get("skipped") and reason in told:
                    continue
                told.add(reason)
                wrong += "wrong" in row
                print(_line(row), flush=True)
                if output:
                    line = json.dumps(row | {"threads": options.threads} | facts)
                    print(line, file=output, flush=True)
    return int(wrong > 0)


def _line(row: dict) -> str:
    case = "{codec:5} {width}x{height} gop {gop:3} {num_frames:2} frames".format(**row)
    head = f"{row['provider']:11} {case}"
    for key in ("wrong", "skipped"):
        if key in row:
            return f"{head}  {key}: {row[key]}"
    ratios = "".join(f", {ratio:.2f} x {name}'s" for name, ratio in row.get("cpu_to", {}).items())
    return head + (
        f"{row['clips_per_s']:8.1f} clips/s {row['frames_per_s']:8.0f} frames/s "
        f"{row['cpu_percent']:4.0f} % CPU {row['resident_mib']:6.0f} MiB "
        f"{spread_text(row['cpu_ms'])} CPU ms/clip{ratios}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
