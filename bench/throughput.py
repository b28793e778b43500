"""Time one training step against a plain-PyTorch baseline, in the same run:

    python bench/throughput.py

The two sides are the shipped trainer (DeepSpeed, one process) and bench/step/baseline.py. They
start from the same weights. If their losses, gradient norms or EMA weights differ, nothing is
timed. Steps of the two sides are timed interleaved. Then each part of a step is timed alone and
compared with its roofline bound. Defaults: configs/vitl16.json on a GPU, else configs/tiny.json;
synthetic video that is already on the device. --peer adds a checkout of facebookresearch/jepa or,
for a config of the second generation, of facebookresearch/vjepa2 as a third side.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    machine_text,
    write_json,
)
from step import report
from step.clock import Clock, Rates
from step.gate import STEPS, compare
from step.measure import Measured, Measurement
from step.roofline import mean_work, step_work
from step.trainers import Baseline, Clips, Ours, demo_manifest, read_config
from vjepa_fast.commands.cost_of_config import clip_flops
from vjepa_fast.config import Config, load_config
from vjepa_fast.errors import UserError, exit_status
from vjepa_fast.training.distributed.cpu import prepare_cpu
from vjepa_fast.training.distributed.launch import init_process_group

if TYPE_CHECKING:
    from peer.checkout import Peer

STEPS_TIMED = {"cuda": 100, "cpu": 30}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, help="JSON file, see configs/")
    parser.add_argument("--batch", type=count, help="clips per step (default: optim.micro_batch)")
    parser.add_argument(
        "--steps", type=count, help="timed steps per side (default: 100; 30 on a CPU)"
    )
    parser.add_argument(
        "--data",
        default="synthetic",
        metavar="synthetic|demo|MANIFEST",
        help="synthetic (default): random video on the device; demo, or a manifest: video files, "
        "decoded by the loader",
    )
    parser.add_argument("--compile", action="store_true", help="use torch.compile on both sides")
    parser.add_argument(
        "--zero",
        type=int,
        metavar="STAGE",
        help="ZeRO stage of our trainer (default: the config's)",
    )
    parser.add_argument(
        "--peer",
        type=Path,
        metavar="DIR",
        help="checkout of facebookresearch/jepa or vjepa2 to time as well",
    )
    parser.add_argument("--profile", type=Path, metavar="DIR", help="folder for a trace per side")
    add_json_argument(parser)
    return parser.parse_args(arguments)


def make_folder(folder: Path | None) -> None:
    """Make the profile's folder; raises UserError if a file has its name."""
    if folder:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise UserError(
                f"--profile: found {folder}, which is not a folder, expected a folder or a path "
                "that does not exist; name another"
            ) from None


def start_peer(options: argparse.Namespace, config: Config) -> Peer:
    """Start the peer's process and its warm-up steps; raises UserError if it cannot take part."""
    from peer.checkout import Peer

    if options.data != "synthetic" or config.compile:
        found = "compile" if config.compile else f"--data {options.data}"
        raise UserError(
            f"--peer: found together with {found}, expected eager steps on synthetic video, since "
            "a checkout runs no others; remove one of the two"
        )
    return Peer(options.peer, config)


def figures(
    config: Config, ours: Ours, measured: Measured, facts: dict[str, Any], peer: Peer | None
) -> dict[str, Any]:
    """`rates` to `gemms` of the schema in step/report.py, from the measurements and the work that
    the masks of the timed steps amount to."""
    clips, bf16 = config.optim.micro_batch, facts["precision"] == "bf16"

    def flops(step: int) -> float:
        return clips * clip_flops(config, *ours.token_counts(step)).total

    result = report.step_fields(
        measured,
        clips,
        float(np.mean([flops(step) for step in measured.steps])),
        facts["device"] if bf16 else None,
    )
    if peer:
        networks = {name: getattr(ours.trainer.model, name) for name in ("encoder", "predictor")}
        own = {name: sum(p.numel() for p in net.parameters()) for name, net in networks.items()}
        result["peer"] = report.peer_fields(
            measured.times, peer.repository, peer.commit, peer.parameters, own
        )
    work = [
        step_work(config, *ours.token_counts(step), 2 if bf16 else 4)
        for step in measured.parts_steps
    ]
    result["parts"] = report.part_fields(measured, mean_work(work))
    if measured.gemms:
        result["gemms"] = measured.gemms | {"step_flops": flops(measured.gemms_step)}
    return result


def measure(
    config: Config, options: argparse.Namespace, name: str, peer: Peer | None
) -> dict[str, Any] | None:
    """Run the gate, then time the sides.

    Args:
        name: name of the config's file.

    Returns:
        The JSON file's content, see step/report.py; None if the sides do not train alike.
    """
    ours = Ours(config)
    device, decodes = ours.device, options.data != "synthetic"
    baseline, clock = Baseline(config, device), Clock(device, decodes)
    precision = config.precision_on(device.type)
    machine = describe(device) | {"clock": clock.name, "threads": torch.get_num_threads()}
    facts = {"config": name, "data": options.data, "compile": config.compile}
    facts |= {"zero": config.zero.stage, **machine, "clips": config.optim.micro_batch}
    facts |= {"precision": precision, "steps": options.steps}
    print(
        f"{name}, {facts['clips']} clips per step, {precision}, data: {options.data}\n"
        f"{machine_text(machine)}"
    )
    with closing(Clips(config, device, decodes)) as clips:
        exact = Baseline(config, device, torch.float64) if precision == "fp32" else None
        gate = compare(ours, baseline, clips, precision, exact)
        del exact  # before memory is measured
        for sentence in gate.errors:
            print("error:", sentence, file=sys.stderr)
        if gate.errors:
            return None
        print(report.gate_text(gate))
        rates = Rates(device, torch.bfloat16 if precision == "bf16" else torch.float32, clock)
        run = Measurement(ours, baseline, clips, clock, STEPS, peer)
        measured = run.measure(rates, options.steps, config.compile)
        for path in run.profile(options.profile) if options.profile else ():
            print(f"written: {path}")
    return facts | report.gate_fields(gate) | figures(config, ours, measured, facts, peer)


def run(options: argparse.Namespace) -> int:
    """Measure, print the tables, and write the files that are asked for."""
    check_one_process("throughput.py")
    check_json(options.json)
    make_folder(options.profile)
    init_process_group()
    prepare_cpu(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    path = options.config or CONFIGS / DEFAULT_CONFIG[device]
    options.steps = options.steps or STEPS_TIMED[device]
    with ExitStack() as stack:
        manifest = None if options.data in ("synthetic", "demo") else Path(options.data)
        if options.data == "demo":
            micro = options.batch or load_config(path).optim.micro_batch
            manifest = stack.enter_context(demo_manifest(micro))
        config = read_config(path, options.batch, options.compile, options.zero, manifest)
        peer = stack.enter_context(closing(start_peer(options, config))) if options.peer else None
        result = measure(config, options, path.name, peer)
    if result is None:
        return 1
    print(f"\n{report.report_text(result)}")
    if options.json:
        from step.picture import draw

        write_json(options.json, result)
        draw(result, options.json.with_suffix(".png"))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """0; 1 if the two sides do not train alike; 2 for a mistake."""
    options = parse(arguments)
    return exit_status(lambda: run(options))


if __name__ == "__main__":
    raise SystemExit(main())
