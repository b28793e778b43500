"""Predict step time and efficiency on 1 … 1024 GPUs at each ZeRO stage:

    python bench/throughput.py --json step.json      # on one GPU: measures the parts of a step
    python bench/scaling.py step.json                # predicts from these parts and link speeds
    python bench/scaling.py --check                  # checks the model with 1, 2 and 4 processes

The parts of a step are measured, and the bytes that each stage sends are counted. The bandwidths
are assumed: --inside and --between are GB/s per GPU within a host and between hosts. The defaults
are 70 % of the data sheets' 450 GB/s (NVLink of an H100) and 50 GB/s (one 400 Gb/s InfiniBand port
per GPU).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from common import CONFIGS, check_json, picture, write_json
from scale.model import Bytes, Links, Parts, Step, step_on
from vjepa_fast.commands.cost_of_config import parameter_counts
from vjepa_fast.commands.terminal import text_table
from vjepa_fast.config import Config, load_config
from vjepa_fast.errors import UserError, exit_status

DEVICES = tuple(1 << k for k in range(11))
STAGES = (0, 1, 2, 3)


def read_parts(path: Path) -> tuple[Parts, dict]:
    """The parts that bench/throughput.py measured, and its whole file.

    Raises UserError if it is not such a file.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        seconds = {row["part"]: row["ours_ms"] / 1e3 for row in result["parts"]}
        seconds.pop("masks", None)
        return Parts(clips=result["clips"], **seconds), result
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: found {type(error).__name__} ({error}), expected a file that this version's "
            "`python bench/throughput.py --json FILE` wrote; run that first"
        ) from None


def bytes_of(config: Config, precision: str) -> Bytes:
    """Gradients are reduced in fp32, weights are gathered in the precision that they run in."""
    encoder, predictor = parameter_counts(config)
    low = 2 if precision == "bf16" else 4
    return Bytes(4.0 * (encoder + predictor), low * (encoder + predictor), low * encoder)


def predictions(
    config: Config, precision: str, parts: Parts, links: Links
) -> dict[int, dict[int, Step]]:
    """By number of devices that divide the config's global batch, then by stage."""
    sizes, optim = bytes_of(config, precision), config.optim
    return {
        devices: {
            stage: step_on(
                devices, stage, parts, sizes, links, optim.global_batch, optim.micro_batch
            )
            for stage in STAGES
        }
        for devices in DEVICES
        if optim.global_batch % devices == 0
    }


def efficiency(found: dict[int, dict[int, Step]], devices: int, stage: int, kind: str) -> float:
    """Speed-up over one device at stage 0, divided by the number of devices."""
    alone = getattr(found[1][0], kind)
    return alone / devices / getattr(found[devices][stage], kind)


def text_of(found: dict[int, dict[int, Step]]) -> str:
    """Step times and efficiencies, then how stage 1's step divides."""
    steps = [("GPUs", "micro-batch", "accumulation", *(f"stage {stage}" for stage in STAGES))]
    names = "compute", "update", "gradients", "weights", "teacher", "overlapped", "could overlap"
    stage_1 = [("GPUs", *names)]
    for devices, stages in found.items():
        cells = []
        for stage, step in stages.items():
            as_runs, best = (
                efficiency(found, devices, stage, kind) for kind in ("exposed", "best")
            )
            cells.append(f"{1e3 * step.exposed:.0f} ms, {as_runs:.0%} ({best:.0%})")
        one = stages[1]
        steps.append((str(devices), f"{one.micro_batch:g}", f"{one.accumulation:g}", *cells))
        milliseconds = (
            one.compute,
            one.update,
            one.reduction,
            one.weights,
            one.teacher,
            one.overlapped,
            one.overlappable,
        )
        stage_1.append((str(devices), *(f"{1e3 * seconds:.1f}" for seconds in milliseconds)))
    return (
        "step time, and efficiency as the engine runs (in brackets: with all communication "
        f"overlapped that could be)\n{text_table(steps)}\n\n"
        f"stage 1, ms per step\n{text_table(stage_1)}"
    )


def draw(found: dict[int, dict[int, Step]], title: str, path: Path) -> None:
    """Efficiency by number of GPUs, and how stage 1's step divides."""
    devices = list(found)
    with picture(path, (11, 4.4), columns=2, grid="y") as (figure, (left, right)):
        for stage, color in zip(STAGES, ("#969696", "#3182bd", "#31a354", "#e6550d"), strict=True):
            for kind, style in (("exposed", "o-"), ("best", ":")):
                values = [100 * efficiency(found, n, stage, kind) for n in devices]
                label = f"stage {stage}" if kind == "exposed" else None
                left.plot(devices, values, style, color=color, label=label, markersize=4)
        left.set(xscale="log", ylim=(0, 105), xlabel="GPUs", ylabel="efficiency, %")
        left.set_xticks(devices, [str(n) for n in devices], fontsize=8)
        left.minorticks_off()
        left.set_title("as the engine runs; dotted: with all possible overlap", fontsize=9)
        left.legend(frameon=False)
        bottom = [0.0] * len(devices)
        steps = [by_stage[1] for by_stage in found.values()]
        for label, seconds in {
            "forward and backward": [step.compute for step in steps],
            "AdamW and EMA": [step.update for step in steps],
            "gradient reduction": [step.reduction for step in steps],
            "weight gather": [step.weights for step in steps],
            "EMA gather, not overlapped": [step.teacher - step.overlapped for step in steps],
        }.items():
            pairs = zip(seconds, steps, strict=True)
            percent = [100 * part / step.exposed for part, step in pairs]
            right.bar([str(n) for n in devices], percent, bottom=bottom, label=label)
            bottom = [b + p for b, p in zip(bottom, percent, strict=True)]
        right.set(xlabel="GPUs", ylabel="fraction of a step, %", ylim=(0, 100))
        right.set_title("stage 1's step", fontsize=9)
        right.tick_params(axis="x", labelsize=8)
        right.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
        figure.suptitle(title, fontsize=9)


def run(options: argparse.Namespace) -> int:
    """Predict from a file of measured parts, or check the model on this machine."""
    check_json(options.json)
    if options.check:
        from scale.check import check

        return check(options.config or CONFIGS / "tiny.json", options.json)
    if options.measured is None:
        raise UserError(
            "FILE: found none, expected the file of `python bench/throughput.py --json FILE`; pass "
            "it, or use --check"
        )
    parts, measured = read_parts(options.measured)
    path = options.config or CONFIGS / measured["config"]
    if path.name != measured["config"]:
        raise UserError(
            f"--config: found {path.name}, but {options.measured} was measured with "
            f"{measured['config']}, expected the same config; measure {path.name} first"
        )
    config = load_config(path)
    links = Links(
        options.per_host, options.inside * 1e9, options.between * 1e9, options.latency / 1e6
    )
    found = predictions(config, measured["precision"], parts, links)
    title = (
        f"{measured['config']}, global batch {config.optim.global_batch}, parts measured on "
        f"{measured['device']}\nstated links: {options.inside:g} GB/s within {options.per_host} "
        f"GPUs, {options.between:g} GB/s between hosts"
    )
    print(f"{title}\n\n{text_of(found)}")
    if options.json:
        rows = [
            {"devices": n, "stage": stage, **vars(step), "exposed": step.exposed}
            for n, steps in found.items()
            for stage, step in steps.items()
        ]
        result = {"measured": measured["config"], "device": measured["device"]}
        result |= {"cpu": measured.get("cpu"), "steps": rows}  # none in files of older versions
        write_json(options.json, result)
        draw(found, title, options.json.with_suffix(".png"))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """0; 2 for a mistake."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "measured",
        nargs="?",
        type=Path,
        metavar="FILE",
        help="result of bench/throughput.py --json FILE",
    )
    parser.add_argument(
        "--config", type=Path, help="the measured config's JSON file, if it is not in configs/"
    )
    parser.add_argument("--per-host", type=int, default=8, help="GPUs per host (default: 8)")
    parser.add_argument(
        "--inside",
        type=float,
        default=315.0,
        help="bandwidth within a host, GB/s per GPU (default: 315)",
    )
    parser.add_argument(
        "--between",
        type=float,
        default=35.0,
        help="bandwidth between hosts, GB/s per GPU (default: 35)",
    )
    parser.add_argument(
        "--latency", type=float, default=10.0, help="microseconds per message (default: 10)"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="check the model against gloo processes on this machine",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="file for all results; a picture is saved beside"
    )
    options = parser.parse_args(arguments)
    return exit_status(lambda: run(options))


if __name__ == "__main__":
    raise SystemExit(main())
