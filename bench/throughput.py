"""What a training step costs, beside the straightforward one in the same run:

    python bench/throughput.py

The shipped trainer (DeepSpeed, one process) and bench/step/baseline.py start from the same weights;
if their losses differ, nothing is timed. Whole steps run in turns, then steps whose parts are timed
one by one. Without arguments: configs/vitl16.json on a GPU, else configs/tiny.json, on synthetic
video that lies on the device. --peer adds a checkout of facebookresearch/jepa as a third side.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from kernels import describe
from step.clock import Clock, Rates, datasheet_flops
from step.gate import STEPS, differences
from step.gemms import products_alone
from step.measure import PER_TURN, Measurement
from step.report import (
    part_rows,
    parts_text,
    peer_row,
    products_text,
    rates_text,
    side_rows,
    spread,
    whole_text,
)
from step.roofline import mean_work, step_work
from step.sides import Clips, Ours, Plain, demo_manifest, draw_masks, read_config

from vjepa_fast.commands.cost_of_config import clip_flops
from vjepa_fast.config import Config, load_config
from vjepa_fast.errors import UserError, exit_status
from vjepa_fast.training.distributed.launch import init_process_group
from vjepa_fast.training.distributed.process import prepare_cpu

if TYPE_CHECKING:
    from peer.side import Peer

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
DEFAULTS = {"cuda": "vitl16.json", "cpu": "tiny.json"}
STEPS_TIMED = {"cuda": 100, "cpu": 30}


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number from 1 on")
    return int(text)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, help="JSON file, see configs/")
    parser.add_argument("--batch", type=_count, help="clips of a step (default: the micro-batch)")
    parser.add_argument("--steps", type=_count, help="timed steps of each side")
    parser.add_argument(
        "--data",
        default="synthetic",
        metavar="synthetic|demo|MANIFEST",
        help="video from the device, or decoded by the loader: the demo's files, or a manifest's",
    )
    parser.add_argument("--compile", action="store_true", help="torch.compile, on both sides")
    parser.add_argument("--zero", type=int, metavar="STAGE", help="ZeRO stage (ours)")
    parser.add_argument("--peer", type=Path, metavar="DIR", help="a checkout to time beside us")
    parser.add_argument("--profile", type=Path, metavar="DIR", help="traces and operators, by side")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all figures; a picture beside")
    return parser.parse_args(arguments)


def check_world() -> None:
    """Raises UserError under a launcher of several processes."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world != 1:
        raise UserError(
            f"WORLD_SIZE: found {world}, expected 1; start bench/throughput.py without a launcher"
        )


def check_places(options: argparse.Namespace) -> None:
    """Make the profile's folder; raises UserError where nothing can be written later."""
    file, folder = options.json, options.profile
    if file and (file.is_dir() or not file.parent.is_dir() or file.suffix == ".png"):
        raise UserError(
            f"--json: found {file}, expected a file in a folder that is there, and a .png beside "
            "it to be free for the picture; name another, e.g. throughput.json"
        )
    if folder:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise UserError(
                f"--profile: found {folder}, which is not a folder, expected one or a free name"
            ) from None


def start_peer(options: argparse.Namespace, config: Config) -> Peer:
    """The peer's process, which has trained for a few steps; raises UserError."""
    from peer.side import Peer

    if options.data != "synthetic" or config.compile:
        found = "compile" if config.compile else f"--data {options.data}"
        raise UserError(
            f"--peer: found it with {found}, expected eager steps on synthetic video, which is "
            "all that a peer is asked for; leave one of the two out"
        )
    return Peer(options.peer, config)


def counts(ours: Ours, number: int) -> tuple[list[list[int]], list[list[int]]]:
    """Context and target tokens of a step, a row for each clip."""
    masks = draw_masks(ours.sampler, number, ours.clips)
    return masks.context_seqlens.T.tolist(), masks.target_seqlens.T.tolist()


def measure(
    config: Config, options: argparse.Namespace, result: dict, peer: Peer | None = None
) -> int:
    """Check, time, print, and fill in `result`; the exit status."""
    ours = Ours(config)
    device, decodes = ours.device, options.data != "synthetic"
    plain = Plain(config, device)
    clock = Clock(device, decodes)
    precision = config.precision_on(device.type)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    clips = config.optim.micro_batch
    machine = describe(device) | {"clock": clock.name, "threads": torch.get_num_threads()}
    result |= machine | {"clips": clips, "precision": precision, "steps": options.steps}
    print(
        f"{result['config']}, {clips} clips a step, {precision}, data: {options.data}; "
        + ", ".join(f"{name}: {value}" for name, value in machine.items())
    )
    with closing(Clips(config, device, decodes)) as videos:
        losses, largest, wrong = differences(ours, plain, videos, precision)
        for sentence in wrong:
            print("error:", sentence, file=sys.stderr)
        if wrong:
            return 1
        result["check"] = {"losses": losses, "largest_relative_difference": largest}
        print(
            f"same weights, {STEPS} steps: losses {', '.join(f'{loss:.6f}' for loss in losses)}; "
            "largest difference: " + ", ".join(f"{item} {gap:.1e}" for item, gap in largest.items())
        )
        rates = Rates(device, dtype, clock)
        run = Measurement((plain, ours), videos, clock, first=STEPS, peer=peer)
        first = run.numbers["ours"] + PER_TURN[device.type]  # behind the warm-up
        times = run.in_turns(-(-options.steps // PER_TURN[device.type]), rates)
        tokens = [counts(ours, n) for n in range(first, run.numbers["ours"])]
        memory = run.memory()
        first = run.numbers["ours"]
        parts = run.parts(max(3, options.steps // 2))
        tokens_of_parts = [counts(ours, n) for n in range(first, run.numbers["ours"])]
        if not config.compile:
            number, video = run.numbers["ours"], next(videos)
            products = products_alone(lambda: ours.step(number, video, None), clock, device)
            flops = clips * clip_flops(config, *counts(ours, number)).total
            result["products"] = products | {"step_flops": flops}
            run.numbers["ours"] += 1
        written = run.profile(options.profile) if options.profile else []

    flops = float(np.mean([clips * clip_flops(config, *step).total for step in tokens]))
    work = mean_work([step_work(config, *step, dtype.itemsize) for step in tokens_of_parts])
    gemm, copy = (float(np.median(times[name])) for name in ("gemm", "copy"))
    result["rates"] = {
        "gemm_gflop_per_s": spread(times["gemm"] / 1e9),
        "copy_gb_per_s": spread(times["copy"] / 1e9),
    }
    result["flops_per_clip"] = flops / clips
    datasheet = datasheet_flops(str(machine["device"])) if precision == "bf16" else None
    result["sides"] = side_rows(times, memory, flops, clips, datasheet)
    result["ratio_spread"] = spread(times["baseline"] / times["ours"])
    result["ratio"] = result["ratio_spread"]["p50"]
    if peer:
        networks = ours.trainer.model.encoder, ours.trainer.model.predictor
        own = [sum(p.numel() for p in network.parameters()) for network in networks]
        own = dict(zip(("encoder", "predictor"), own, strict=True))
        result["peer"] = peer_row(times, peer.commit, peer.parameters, own)
    result["parts"] = part_rows(parts, work, gemm, copy)
    print(f"\n{rates_text(result)}\n\n{whole_text(result)}\n\n{parts_text(result['parts'])}")
    if "products" in result:
        print(products_text(result))
    for path in written:
        print(f"written: {path}")
    return 0


def run(options: argparse.Namespace) -> int:
    """From options to printed tables and files."""
    check_world()
    check_places(options)
    init_process_group()
    prepare_cpu(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    path = options.config or CONFIGS / DEFAULTS[device]
    options.steps = options.steps or STEPS_TIMED[device]
    with ExitStack() as stack:
        manifest = None if options.data in ("synthetic", "demo") else Path(options.data)
        if options.data == "demo":
            micro = options.batch or load_config(path).optim.micro_batch
            manifest = stack.enter_context(demo_manifest(micro))
        config = read_config(path, options.batch, options.compile, options.zero, manifest)
        result = {"config": path.name, "data": options.data, "compile": config.compile}
        result["zero"] = config.zero.stage
        peer = stack.enter_context(closing(start_peer(options, config))) if options.peer else None
        status = measure(config, options, result, peer)
    if status == 0 and options.json:
        from step.picture import draw

        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        draw(result, options.json.with_suffix(".png"))
    return status


def main(arguments: Sequence[str] | None = None) -> int:
    """0; 1 if the two sides do not train alike; 2 for a mistake."""
    options = parse(arguments)
    return exit_status(lambda: run(options))


if __name__ == "__main__":
    raise SystemExit(main())
