"""Time mask sampling against a plain torch sampler: python bench/masks.py

First, the statistics of the two samplers are compared. Before each case, the masks of our own
providers are compared and must be equal. If a check fails, nothing more is timed. The providers of
a case are interleaved, so that other load on the machine slows all of them alike; speedups are
therefore more reliable than microseconds. MaskCollator collates a batch of numbers besides.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

import numpy as np
import torch

from common import at_least, count, describe, machine_text, spread, spread_text
from vjepa_fast.commands.terminal import text_table
from vjepa_fast.masks import MaskBatch, MaskCollator, MaskSampler, MultiBlock

GRID = (8, 14, 14)
PAPER = (MultiBlock(8, (0.15, 0.15)), MultiBlock(2, (0.7, 0.7)))
BASELINE = "plain torch"
CHECKED = 3  # steps of which the masks are compared
ROUND = 5e-3  # seconds of one provider's calls
FIELDS = ("context_tokens", "context_seqlens", "target_tokens", "target_seqlens")
Grid = tuple[int, int, int]


def plain_masks(
    specs: Sequence[MultiBlock], grid: Grid, clips: int, random: torch.Generator
) -> list[list[torch.Tensor]]:
    """Multi-block masks written straightforwardly in torch, block by block and clip by clip.

    Returns the masks of each spec, int32 [T', H', W'], 1 at context tokens.
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
    """Context and target tokens of each spec, int64 [clips, K], truncated to the shortest."""
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
    """(item, plain, ours, tolerance), the values each a mean over `steps` batches."""
    random = torch.Generator().manual_seed(0)
    truncated, whole = MaskSampler(PAPER, GRID), MaskSampler(PAPER, GRID, truncate="none")
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
        batch = truncated.sample(step, ids)
        contexts = [batch.context(m) for m in range(len(PAPER))]
        targets = [batch.target(m) for m in range(len(PAPER))]
        ours.append(_statistics(seen, contexts, targets))
    items = []
    for name in plain[0]:
        left = np.array([row[name] for row in plain])
        right = np.array([row[name] for row in ours])
        # Five standard errors of the difference: a correct sampler fails once in a million runs.
        error = np.sqrt((left.var(ddof=1) + right.var(ddof=1)) / steps)
        items.append((name, float(left.mean()), float(right.mean()), float(5 * error)))
    return items


def _statistics(
    seen: list[torch.Tensor], contexts: list[torch.Tensor], targets: list[torch.Tensor]
) -> dict[str, float]:
    """Statistics of one batch.

    Args:
        seen: for each spec the fraction of clips whose context holds a position, [H', W'], before
            truncation.
    """
    result = {}
    for m, fraction in enumerate(seen):
        result[f"spec {m}: fraction of context"] = fraction.mean().item()
        result[f"spec {m}: fraction of context, center"] = fraction[5:9, 5:9].mean().item()
        result[f"spec {m}: fraction of context, corners"] = fraction[::13, ::13].mean().item()
        result[f"spec {m}: context tokens after truncation"] = contexts[m].shape[1]
        result[f"spec {m}: target tokens after truncation"] = targets[m].shape[1]
    return result


def provider_that_differs(calls: dict[str, Callable[[int], object]]) -> str | None:
    """The name of our provider whose masks differ from the first one's in a step of the first."""
    first, *others = (name for name in calls if name != BASELINE)
    for step in range(CHECKED):
        expected = _comparable(calls[first](step))
        for name in others:
            if not all(map(torch.equal, _comparable(calls[name](step)), expected)):
                return name
    return None


def _comparable(result: MaskBatch | tuple) -> list[torch.Tensor]:
    """Tokens and lengths of context and of target, from a sampler or from a collator."""
    if isinstance(result, MaskBatch):
        return [getattr(result, field) for field in FIELDS]
    tensors = []
    for masks in result[1:]:
        tensors.append(torch.cat([mask.flatten() for mask in masks]))
        tensors.append(torch.tensor([[mask.shape[1]] * len(mask) for mask in masks]))
    return tensors


def time_interleaved(
    calls: dict[str, Callable[[int], object]], repeats: int
) -> dict[str, np.ndarray]:
    """Seconds of each provider's call, [repeats], interleaved.

    Each repeat makes calls for a few milliseconds, so that all providers run with warm caches.
    """
    counts = {}
    for name, call in calls.items():
        call(0)
        start = time.perf_counter()
        call(1)
        counts[name] = max(1, round(ROUND / (time.perf_counter() - start)))
    seconds = {name: np.empty(repeats) for name in calls}
    for repeat in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            for i in range(counts[name]):
                call(repeat * counts[name] + i)
            seconds[name][repeat] = (time.perf_counter() - start) / counts[name]
    return seconds


def providers(
    specs: Sequence[MultiBlock], grid: Grid, clips: int, baseline: bool, collator: bool = False
) -> dict[str, Callable[[int], object]]:
    """One call each of: the plain sampler (if asked for), ours, ours on one thread if a batch is
    large enough for several, and ours as a collate_fn of numbers (if asked for)."""
    ids = np.arange(CHECKED * clips).reshape(CHECKED, clips)  # of a collator's first batches
    options = {"seed": clips << 32}  # a collator's
    sampler = MaskSampler(specs, grid, **options)
    random = torch.Generator().manual_seed(0)
    calls: dict[str, Callable[[int], object]] = {}
    if baseline:
        calls[BASELINE] = lambda _: plain_tokens(plain_masks(specs, grid, clips, random))
    calls["vjepa_fast"] = lambda step: sampler.sample(step, ids[step % CHECKED])
    if clips >= 1536:  # where several threads draw
        alone = MaskSampler(specs, grid, **options, num_threads=1)
        calls["vjepa_fast, one thread"] = lambda step: alone.sample(step, ids[step % CHECKED])
    if collator:
        frames, height, width = grid
        collate = MaskCollator([*map(vars, specs)], (16 * height, 16 * width), 2 * frames)
        batch = list(range(clips))
        calls["MaskCollator"] = lambda _: collate(batch)
    return calls


def cases() -> list[tuple[str, dict]]:
    """The timed cases: the paper's batch of 24, then other batches, grids and block counts."""
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
        case["baseline"] = case["clips"] <= 24  # larger batches take plain torch seconds
    return [("paper, batch 24", paper | {"collator": True}), *grown]


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, time, print; 1 if anything is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=count, default=20, help="timed repeats (default: 20)")
    # At least two batches, since the tolerance comes from their spread.
    parser.add_argument(
        "--check-steps",
        type=at_least(2),
        default=200,
        help="batches over which the statistics are compared (default: 200)",
    )
    parser.add_argument("--output", type=Path, help="file for the results, as JSON lines")
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
    """Print the comparison and the times; write each case's rows as soon as they are measured."""
    items = compare_statistics(check_steps)
    wrong = [item for item in items if not abs(item[1] - item[2]) <= item[3]]
    statistics = [(name, *(f"{value:.3f}" for value in row)) for name, *row in wrong or items]
    print(text_table([("mean of a batch", "plain torch", "ours", "tolerance"), *statistics]))
    if wrong:
        print("error: the samplers' statistics differ; nothing is timed", file=sys.stderr)
        return 1

    machine = describe(torch.device("cpu"))
    print(f"\n{machine_text(machine)}\nmicroseconds per batch, median of {repeats} (p20 … p80)\n")
    for title, case in cases():
        calls = providers(**case)
        if different := provider_that_differs(calls):
            print(f"error: {title}: {different} draws other masks; not timed", file=sys.stderr)
            return 1
        seconds = time_interleaved(calls, repeats)
        base = np.median(seconds[BASELINE]) if BASELINE in seconds else None
        cells = [(title, "us", "vs plain torch")]
        for name, values in seconds.items():
            microseconds = spread(values * 1e6)
            ratio = base / np.median(values) if base else None
            speedup = "" if ratio is None else f"{ratio:.1f} x"
            cells.append((f"  {name}", spread_text(microseconds), speedup))
            row = {"case": title, "provider": name, "baseline": name == BASELINE}
            row |= {f"{point}_us": value for point, value in microseconds.items()}
            print(json.dumps(row | {"speedup": ratio} | machine), file=output, flush=True)
        print(text_table(cells), end="\n\n", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
