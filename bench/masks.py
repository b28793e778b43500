"""What drawing masks costs, beside a plain torch sampler in the same run: python bench/masks.py

First the statistics of the two samplers are compared, and before each case our own providers,
whose masks must be the same; nothing wrong is timed. Every case's
providers take turns, so that a busy machine slows all of them; ratios tell more than microseconds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

import numpy as np
import torch

from vjepa_fast import __version__
from vjepa_fast.masks import MaskSampler, MultiBlock

GRID = (8, 14, 14)
PAPER = (MultiBlock(8, (0.15, 0.15)), MultiBlock(2, (0.7, 0.7)))
BASELINE = "plain torch"
TURN = 5e-3  # seconds
FIELDS = ("context_tokens", "context_seqlens", "target_tokens", "target_seqlens")
Grid = tuple[int, int, int]


def plain_masks(
    specs: Sequence[MultiBlock], grid: Grid, clips: int, random: torch.Generator
) -> list[list[torch.Tensor]]:
    """Multi-block masks as one would write them down, in torch, block by block and clip by clip.

    Returns each spec's masks, int32 [T', H', W'], 1 where context is.
    """

    def between(ends: tuple[float, float]) -> float:
        return ends[0] + torch.rand(1, generator=random).item() * (ends[1] - ends[0])

    result = []
    for spec in specs:
        length = max(1, int(grid[0] * between(spec.temporal_scale)))
        area = int(grid[1] * grid[2] * between(spec.spatial_scale))
        aspect = between(spec.aspect_ratio)
        height = min(round((area * aspect) ** 0.5), grid[1])
        width = min(round((area / aspect) ** 0.5), grid[2])
        masks = []
        while len(masks) < clips:
            visible = torch.ones(grid, dtype=torch.int32)
            for _ in range(spec.num_blocks):
                t, y, x = (
                    int(torch.randint(whole - part + 1, (1,), generator=random))
                    for whole, part in zip(grid, (length, height, width), strict=True)
                )
                block = torch.ones(grid, dtype=torch.int32)
                block[t : t + length, y : y + height, x : x + width] = 0
                visible *= block
            if visible.any():
                masks.append(visible)
        result.append(masks)
    return result


def plain_tokens(masks: list[list[torch.Tensor]]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Context and target tokens of each spec, int64 [clips, K], cut to the batch's shortest."""
    sides = []
    for wanted in (1, 0):
        tensors = []
        for clips in masks:
            rows = [(mask.flatten() == wanted).nonzero().squeeze(1) for mask in clips]
            shortest = min(map(len, rows))
            tensors.append(torch.stack([row[:shortest] for row in rows]))
        sides.append(tensors)
    return sides[0], sides[1]


def compare_statistics(steps: int, clips: int = 24) -> list[tuple[str, float, float, float]]:
    """(item, plain, ours, tolerance), each a mean over `steps` batches."""
    random = torch.Generator().manual_seed(0)
    cut, whole = MaskSampler(PAPER, GRID), MaskSampler(PAPER, GRID, truncate="none")
    plain, ours = [], []
    for step in range(steps):
        ids = range(step * clips, (step + 1) * clips)
        masks = plain_masks(PAPER, GRID, clips, random)
        contexts, targets = plain_tokens(masks)
        seen = [torch.stack(spec).double().mean(dim=(0, 1)) for spec in masks]
        plain.append(_statistics(seen, contexts, targets))

        batch = whole.sample(step, ids)
        parts = batch.context_tokens.split(batch.context_seqlens.sum(dim=1).tolist())
        counts = [torch.bincount(part, minlength=batch.num_tokens) / clips for part in parts]
        seen = [count.view(GRID).mean(dim=0) for count in counts]
        batch = cut.sample(step, ids)
        contexts = [batch.context(m) for m in range(len(PAPER))]
        targets = [batch.target(m) for m in range(len(PAPER))]
        ours.append(_statistics(seen, contexts, targets))
    items = []
    for name in plain[0]:
        left = np.array([row[name] for row in plain])
        right = np.array([row[name] for row in ours])
        # Five standard errors of the difference: a right sampler fails once in a million runs.
        error = np.sqrt((left.var(ddof=1) + right.var(ddof=1)) / steps)
        items.append((name, float(left.mean()), float(right.mean()), float(5 * error)))
    return items


def _statistics(
    seen: list[torch.Tensor], contexts: list[torch.Tensor], targets: list[torch.Tensor]
) -> dict[str, float]:
    """Of one batch; seen: each place's share of context before cutting, [H', W'] for each spec."""
    result = {}
    for m, share in enumerate(seen):
        result[f"spec {m}: share of context"] = share.mean().item()
        result[f"spec {m}: share of context, middle"] = share[5:9, 5:9].mean().item()
        result[f"spec {m}: share of context, corners"] = share[::13, ::13].mean().item()
        result[f"spec {m}: context tokens after the cut"] = contexts[m].shape[1]
        result[f"spec {m}: target tokens after the cut"] = targets[m].shape[1]
    return result


def odd_one(calls: dict[str, Callable[[int], object]]) -> str | None:
    """Which of our providers gives other masks than the first of them in one of three steps."""
    first, *others = (name for name in calls if name != BASELINE)
    for step in range(3):
        expected = calls[first](step)
        for name in others:
            found = calls[name](step)
            if not all(
                torch.equal(getattr(found, field), getattr(expected, field)) for field in FIELDS
            ):
                return name
    return None


def time_in_turns(calls: dict[str, Callable[[int], object]], repeats: int) -> dict[str, np.ndarray]:
    """Seconds of each call, `repeats` of each, in turns; a turn makes calls for a few milliseconds,
    so that one provider does not find its memory in the caches and another does not."""
    counts = {}
    for name, call in calls.items():
        call(0)
        start = time.perf_counter()
        call(1)
        counts[name] = max(1, round(TURN / (time.perf_counter() - start)))
    seconds = {name: np.empty(repeats) for name in calls}
    for repeat in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            for i in range(counts[name]):
                call(repeat * counts[name] + i)
            seconds[name][repeat] = (time.perf_counter() - start) / counts[name]
    return seconds


def providers(
    specs: Sequence[MultiBlock], grid: Grid, clips: int, baseline: bool
) -> dict[str, Callable[[int], object]]:
    """One call each of: the plain sampler (if asked for), ours, and ours on one thread if a batch
    is large enough for several."""
    ids = np.arange(clips)
    sampler = MaskSampler(specs, grid)
    random = torch.Generator().manual_seed(0)
    calls: dict[str, Callable[[int], object]] = {}
    if baseline:
        calls[BASELINE] = lambda _: plain_tokens(plain_masks(specs, grid, clips, random))
    calls["vjepa_fast"] = lambda step: sampler.sample(step, ids)
    if clips >= 1536:  # where several threads draw
        alone = MaskSampler(specs, grid, num_threads=1)
        calls["the same, one thread"] = lambda step: alone.sample(step, ids)
    return calls


def cases() -> list[tuple[str, dict]]:
    """What is timed: the paper's batch of 24, then batch, grid and blocks grown one by one."""
    paper = {"specs": PAPER, "grid": GRID, "clips": 24, "baseline": True}
    grown = [(f"batch {clips}", paper | {"clips": clips}) for clips in (1, 192, 1536, 3072)]
    grown += [
        (f"grid {'x'.join(map(str, grid))}", paper | {"grid": grid})
        for grid in ((1, 14, 14), (8, 24, 24), (16, 24, 24), (32, 24, 24))
    ]
    grown += [
        (f"{blocks} blocks of 5 %", paper | {"specs": (MultiBlock(blocks, (0.05, 0.05)),)})
        for blocks in (1, 4, 16, 64)
    ]
    for _, case in grown:
        case["baseline"] = case["clips"] <= 24  # beyond, the plain one takes seconds
    return [("paper, batch 24", paper), *grown]


def describe() -> dict[str, object]:
    """Machine, versions and commit: what a row needs to be compared with another."""
    git = ["git", "-c", "safe.directory=*", "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(
        git, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "vjepa_fast": __version__,
        "commit": done.stdout.strip() or None,
    }


def _number(least: int) -> Callable[[str], int]:
    """An argparse type: a whole number from `least` on."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(
                f"found {text!r}, expected a whole number from {least} on"
            )
        return int(text)

    return parse


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, time, print; 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=_number(1), default=20)
    # Two batches at least, for a spread to judge their difference by.
    parser.add_argument("--check-steps", type=_number(2), default=200, help="batches compared")
    parser.add_argument("--output", type=Path, help="rows as JSON lines")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:  # before minutes of timing
        if options.output:
            options.output.parent.mkdir(parents=True, exist_ok=True)
            options.output.write_text("")
    except OSError as error:
        parser.error(f"--output: found {options.output}, which cannot be written ({error})")
    with (options.output or Path(os.devnull)).open("w") as output:
        return check_and_time(options.check_steps, options.repeats, output)


def check_and_time(check_steps: int, repeats: int, output: TextIO) -> int:
    """Print what is compared and timed, and write a row for each time as soon as it is there."""
    items = compare_statistics(check_steps)
    wrong = [item for item in items if not abs(item[1] - item[2]) <= item[3]]
    for item, plain, ours, tolerance in wrong or items:
        print(f"{item:42} plain {plain:8.3f}  ours {ours:8.3f}  (± {tolerance:.3f})")
    if wrong:
        print("error: the samplers' statistics differ; nothing was timed", file=sys.stderr)
        return 1

    machine = describe()
    print(f"\nmedian of {repeats} (20 % … 80 %), microseconds; {machine}")
    for title, case in cases():
        calls = providers(**case)
        if odd := odd_one(calls):
            print(f"error: {title}: {odd} draws other masks; it was not timed", file=sys.stderr)
            return 1
        seconds = time_in_turns(calls, repeats)
        base = np.median(seconds[BASELINE]) if BASELINE in seconds else None
        for name, values in seconds.items():
            low, middle, high = np.percentile(values * 1e6, (20, 50, 80))
            ratio = base / np.median(values) if base else None
            times = "" if ratio is None else f"{ratio:8.1f} x"
            print(f"{title:18} {name:32} {middle:10.1f} ({low:.1f} … {high:.1f}) {times}")
            row = {"case": title, "provider": name, "baseline": name == BASELINE}
            row |= {"p20_us": low, "p50_us": middle, "p80_us": high, "speedup": ratio}
            print(json.dumps(row | machine), file=output, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
