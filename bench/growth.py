"""How a training step's cost grows with frames, resolution, batch, mask ratio and model size:

    python bench/growth.py

Along each axis a few configs that differ in nothing else take turns, and their times stand beside
their operations (models.cost). A slope of 1 means that time grows as operations do; below 1, that
larger steps use the device better. Without arguments: configs/vitl16.json on a GPU, else
configs/tiny.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from kernels import describe
from step.clock import Clock
from step.sides import Clips, Ours
from throughput import CONFIGS, DEFAULTS, check_world, counts

from vjepa_fast.commands.cost_of_config import clip_flops
from vjepa_fast.commands.terminal import text_table
from vjepa_fast.config import Config, load_config
from vjepa_fast.errors import UserError, exit_status
from vjepa_fast.training.distributed.launch import init_process_group
from vjepa_fast.training.distributed.process import prepare_cpu

CLIPS = 8  # of a step, where the batch is not what grows
RATIOS = (0.5, 0.7, 0.8, 0.9)


@dataclass
class Point:
    """A config on an axis: its value, a step's operations and seconds."""

    value: float
    flops: float
    seconds: list[float]

    @property
    def ms(self) -> float:
        """Median milliseconds of a step."""
        return 1e3 * float(np.median(self.seconds))


def axes_of(config: Config) -> dict[str, list[tuple[float, dict]]]:
    """For each axis its values, and the config's keys that set them."""
    data, encoder, patch = config.data, config.model.encoder, config.model.patch_size
    per_head = encoder.width // encoder.heads

    def shape(width: int, depth: int) -> dict:
        sizes = {"width": width, "depth": depth, "heads": width // per_head}
        return {"model.encoder": encoder.model_dump() | sizes}

    def clips(number: int) -> dict:
        keys = ("optim.global_batch", "optim.micro_batch", "masks.truncate_group")
        return dict.fromkeys(keys, number)

    frames = [data.num_frames * k // 2 for k in (1, 2, 4, 8)]
    sides = [max(1, data.crop_size * k // (2 * patch)) * patch for k in (1, 2, 3, 4)]
    widths = [per_head * max(1, encoder.heads * k // 2) for k in (1, 2, 4)]
    depths = [max(1, encoder.depth * k // 2) for k in (1, 2, 4)]
    axes = {
        "frames": [(n, {"data.num_frames": n}) for n in frames],
        "pixels a side": [(n, {"data.crop_size": n}) for n in sides],
        "clips a step": [(n, clips(n)) for n in (CLIPS // 2, CLIPS, 2 * CLIPS, 4 * CLIPS)],
        "share of the places that is target": [
            (r, {"masks.specs": [{"strategy": "random_tube", "ratio": r}]}) for r in RATIOS
        ],
        "encoder width": [(n, shape(n, encoder.depth)) for n in widths],
        "encoder depth": [(n, shape(encoder.width, n)) for n in depths],
    }
    return {name: [(n, clips(CLIPS) | keys) for n, keys in axis] for name, axis in axes.items()}


def measure_axis(path: Path, axis: Sequence[tuple[float, dict]], turns: int) -> list[Point]:
    """Time an axis' configs in turns. What doesn't fit into the GPU's memory is left out, aloud."""
    sides, points = [], []
    for value, keys in axis:
        config = load_config(path, [f"{key}={json.dumps(v)}" for key, v in keys.items()])
        try:
            side = Ours(config)
            clips = Clips(config, side.device, decodes=False)
            side.step(0, next(clips), None)  # warm
        except torch.OutOfMemoryError:
            print(f"left out: {value:g}, which needs more memory than this GPU has")
            continue
        sides.append((config, side, clips, Clock(side.device, decodes=False)))
        points.append(Point(value, 0.0, []))
    for turn in range(1, turns + 1):
        for (config, side, clips, clock), point in zip(sides, points, strict=True):
            video = next(clips)
            step = config.optim.micro_batch * clip_flops(config, *counts(side, turn)).total
            point.seconds.append(clock.time(lambda s=side, n=turn, v=video: s.step(n, v, None)))
            point.flops += step / turns
    for *_, clips, _ in sides:
        clips.close()
    return points


def slope(points: Sequence[Point]) -> float:
    """Of log time against log operations, by least squares."""
    flops, ms = np.log([p.flops for p in points]), np.log([p.ms for p in points])
    flops, ms = flops - flops.mean(), ms - ms.mean()
    return float(flops @ ms / (flops @ flops))


def draw(result: dict, path: Path) -> None:
    """A panel for each axis: a step's time, and what its operations alone would make of it."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(2, 3, figsize=(11, 6), layout="constrained")
    for panel, (name, axis) in zip(panels.flat, result["axes"].items(), strict=True):
        values, ms, flops = ([p[key] for p in axis["points"]] for key in ("value", "ms", "gflop"))
        panel.plot(values, ms, "o-", color="#3182bd", label="measured")
        scale = float(np.exp(np.mean(np.log(ms)) - np.mean(np.log(flops))))
        panel.plot(values, [scale * f for f in flops], "k--", label="as operations grow")
        panel.set(
            xlabel=name, ylabel="ms a step", title=f"slope {axis['slope']:.2f}", ylim=(0, None)
        )
        panel.grid(color="0.9")
    panels.flat[0].legend(frameon=False, fontsize=9)
    figure.suptitle(f"{result['config']}, {result['device']}, {result['threads']} thread(s)")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def run(options: argparse.Namespace) -> int:
    """Measure, print, and write the files that are asked for."""
    check_world()
    if options.json and (not options.json.parent.is_dir() or options.json.suffix == ".png"):
        raise UserError(
            f"--json: found {options.json}, expected a file in a folder that is there; name "
            "another, e.g. growth.json"
        )
    init_process_group()
    prepare_cpu(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    path = options.config or CONFIGS / DEFAULTS[device.type]
    result = {"config": path.name, "axes": {}, "threads": torch.get_num_threads()}
    result |= describe(device) | {"clock": Clock(device, decodes=False).name}
    rows = [("axis", "value", "GFLOP a step", "ms a step", "GFLOP/s", "slope")]
    for name, axis in axes_of(load_config(path)).items():
        points = measure_axis(path, axis, options.turns)
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
    print(f"{result['config']}, {result['device']}, {result['clock']}, {options.turns} turns")
    print(text_table(rows))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        draw(result, options.json.with_suffix(".png"))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """0; 2 for a mistake."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, help="JSON file, see configs/")
    parser.add_argument("--turns", type=int, default=7, help="timed steps of each config (7)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all figures; a picture beside")
    options = parser.parse_args(arguments)
    return exit_status(lambda: run(options))


if __name__ == "__main__":
    raise SystemExit(main())
