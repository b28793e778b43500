"""Measure how a step's time grows with frames, resolution, batch, mask ratio and model size:

    python bench/growth.py

On each axis, a few configs differ in that one setting only. Their steps are interleaved. Times are
reported beside FLOPs (vjepa_fast/models/cost.py), with the slope of log time against log FLOPs. A
slope of 1 means that time is proportional to FLOPs; below 1, larger steps use the device better.
Default config: configs/vitl16.json on a GPU, else configs/tiny.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from common import (
    CONFIGS,
    DEFAULT_CONFIG,
    add_json_argument,
    check_json,
    check_one_process,
    count,
    describe,
    picture,
    write_json,
)
from step.clock import Clock
from step.trainers import Clips, Ours
from vjepa_fast.commands.cost_of_config import clip_flops
from vjepa_fast.commands.terminal import text_table
from vjepa_fast.config import Config, load_config
from vjepa_fast.errors import exit_status
from vjepa_fast.training.distributed.cpu import prepare_cpu
from vjepa_fast.training.distributed.launch import init_process_group

CLIPS = 8  # of a step, on every axis but the batch's
RATIOS = (0.5, 0.7, 0.8, 0.9)


@dataclass
class Point:
    """One config on an axis: the axis's value, a step's FLOPs, seconds of each timed step."""

    value: float
    flops: float
    seconds: list[float]

    @property
    def ms(self) -> float:
        """Median milliseconds of a step."""
        return 1e3 * float(np.median(self.seconds))


def axes_of(config: Config) -> dict[str, list[tuple[float, dict]]]:
    """For each axis its values, and the config keys that set them."""
    data, encoder, patch = config.data, config.model.encoder, config.model.patch_size
    per_head = encoder.width // encoder.heads

    def shape(width: int, depth: int) -> dict:
        sizes = {"width": width, "depth": depth, "heads": width // per_head}
        return {"model.encoder": encoder.model_dump() | sizes}

    def clips(number: int) -> dict:
        keys = ("optim.global_batch", "optim.micro_batch", "masks.truncate_group")
        return dict.fromkeys(keys, number)

    frames = [data.num_frames * k // 2 for k in (1, 2, 4, 8)]
    pixels = [max(1, data.crop_size * k // (2 * patch)) * patch for k in (1, 2, 3, 4)]
    widths = [per_head * max(1, encoder.heads * k // 2) for k in (1, 2, 4)]
    depths = [max(1, encoder.depth * k // 2) for k in (1, 2, 4)]
    axes = {
        "frames": [(n, {"data.num_frames": n}) for n in frames],
        "crop size, pixels": [(n, {"data.crop_size": n}) for n in pixels],
        "clips per step": [(n, clips(n)) for n in (CLIPS // 2, CLIPS, 2 * CLIPS, 4 * CLIPS)],
        "mask ratio": [
            (r, {"masks.specs": [{"strategy": "random_tube", "ratio": r}]}) for r in RATIOS
        ],
        "encoder width": [(n, shape(n, encoder.depth)) for n in widths],
        "encoder depth": [(n, shape(encoder.width, n)) for n in depths],
    }
    return {name: [(n, clips(CLIPS) | keys) for n, keys in axis] for name, axis in axes.items()}


def measure_axis(path: Path, axis: Sequence[tuple[float, dict]], repeats: int) -> list[Point]:
    """Time an axis's configs, interleaved. A config that does not fit into the GPU's memory is left
    out, with a message."""
    sides, points = [], []
    for value, keys in axis:
        config = load_config(path, [f"{key}={json.dumps(v)}" for key, v in keys.items()])
        try:
            side = Ours(config)
            clips = Clips(config, side.device, decodes=False)
            side.step(0, next(clips), None)  # warm-up
        except torch.OutOfMemoryError:
            print(f"left out: {value:g}, which needs more memory than this GPU has")
            continue
        sides.append((config, side, clips, Clock(side.device, decodes=False)))
        points.append(Point(value, 0.0, []))
    for step in range(1, repeats + 1):
        for (config, side, clips, clock), point in zip(sides, points, strict=True):
            video = next(clips)
            flops = clip_flops(config, *side.token_counts(step)).total
            point.flops += config.optim.micro_batch * flops / repeats
            point.seconds.append(clock.time(lambda s=side, n=step, v=video: s.step(n, v, None)))
    for *_, clips, _ in sides:
        clips.close()
    return points


def slope(points: Sequence[Point]) -> float:
    """Of log time against log FLOPs, by least squares."""
    flops, ms = np.log([p.flops for p in points]), np.log([p.ms for p in points])
    flops, ms = flops - flops.mean(), ms - ms.mean()
    return float(flops @ ms / (flops @ flops))


def draw(result: dict, path: Path) -> None:
    """A panel for each axis: a step's time, and how its FLOPs alone would let it grow."""
    with picture(path, (11, 6), rows=2, columns=3) as (figure, panels):
        for panel, (name, axis) in zip(panels.flat, result["axes"].items(), strict=True):
            keys = ("value", "ms", "gflop")
            values, ms, flops = ([p[key] for p in axis["points"]] for key in keys)
            panel.plot(values, ms, "o-", color="#3182bd", label="measured")
            scale = float(np.exp(np.mean(np.log(ms)) - np.mean(np.log(flops))))
            panel.plot(values, [scale * f for f in flops], "k--", label="proportional to FLOPs")
            title = f"slope {axis['slope']:.2f}"
            panel.set(xlabel=name, ylabel="ms per step", title=title, ylim=(0, None))
        panels.flat[0].legend(frameon=False, fontsize=9)
        figure.suptitle(f"{result['config']}, {result['device']}, {result['threads']} thread(s)")


def run(options: argparse.Namespace) -> int:
    """Measure, print, and write the files that are asked for."""
    check_one_process("growth.py")
    check_json(options.json)
    init_process_group()
    prepare_cpu(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    path = options.config or CONFIGS / DEFAULT_CONFIG[device.type]
    result = {"config": path.name, "axes": {}, "threads": torch.get_num_threads()}
    result |= describe(device) | {"clock": Clock(device, decodes=False).name}
    rows = [("axis", "value", "GFLOP per step", "ms per step", "GFLOP/s", "slope")]
    for name, axis in axes_of(load_config(path)).items():
        points = measure_axis(path, axis, options.repeats)
        grown = slope(points)
        result["axes"][name] = {
            "slope": grown,
            "points": [{"value": p.value, "gflop": p.flops / 1e9, "ms": p.ms} for p in points],
        }
        for k, p in enumerate(points):
            rate = p.flops / p.ms / 1e6
            first = (name, f"{grown:.2f}") if k == 0 else ("", "")
            cells = f"{p.value:g}", f"{p.flops / 1e9:.2f}", f"{p.ms:.1f}", f"{rate:.0f}"
            rows.append((first[0], *cells, first[1]))
    print(
        f"{result['config']}, {result['device']}, clock: {result['clock']}, median of "
        f"{options.repeats} steps; slope: of log time against log FLOPs"
    )
    print(text_table(rows))
    if options.json:
        write_json(options.json, result)
        draw(result, options.json.with_suffix(".png"))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """0; 2 for a mistake."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, help="JSON file, see configs/")
    parser.add_argument(
        "--repeats", type=count, default=7, help="timed steps per config (default: 7)"
    )
    add_json_argument(parser)
    options = parser.parse_args(arguments)
    return exit_status(lambda: run(options))


if __name__ == "__main__":
    raise SystemExit(main())
