"""Predict step time and efficiency on 1 … 1024 GPUs at each ZeRO stage:

    python bench/throughput.py --json step.json      # on one GPU: measures the parts of a step
    python bench/scaling.py step.json                # predicts from these parts and link speeds
    python bench/scaling.py --config configs/vith16.json --tflops 400     # without a measurement
    python bench/scaling.py --check                  # checks the model with 1, 2 and 4 processes

The bytes that each stage sends are counted. The parts of a step are measured, or derived from its
FLOPs at the rate that --tflops states, and from the bytes of AdamW and the EMA at --memory. The
bandwidths are assumed: --inside and --between are GB/s per GPU within a host and between hosts. The
defaults are 70 % of the data sheets' 450 GB/s (NVLink of an H100) and 50 GB/s (one 400 Gb/s
InfiniBand port per GPU). Strong scaling divides the config's global batch; with --weak every GPU
has the config's micro-batch, and the global batch grows.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

from common import CONFIGS, add_json_argument, check_json, count, picture, write_json
from scale.model import Bytes, Links, Parts, Step, step_on
from vjepa_fast.commands.cost_of_config import (
    by_length,
    clip_flops,
    count_tokens,
    parameter_counts,
)
from vjepa_fast.commands.terminal import text_table
from vjepa_fast.config import Config, load_config
from vjepa_fast.errors import UserError, exit_status
from vjepa_fast.training.zero.shards import FIRST, bucket_capacity

DEVICES = tuple(1 << k for k in range(11))
STAGES = (0, 1, 2, 3)
# Bytes of a step per parameter. AdamW reads master, gradient, moments and writes master, moments,
# bf16 weight; the EMA reads average and master and writes the average twice, once in bf16.
ADAM, EMA = 30, 14
KINDS = "exposed", "apart", "best"  # of `Step`: as it runs, if nothing were hidden, if all were


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


def stated_parts(config: Config, tflops: float, memory: float) -> Parts:
    """Parts of a step of one micro-batch, derived and not measured.

    Args:
        config: whose FLOPs are counted, without recomputation; the mean over its clips' lengths.
        tflops: rate of all passes, TFLOP/s.
        memory: of AdamW and the EMA, GB/s.
    """
    target = encoder = predictor = 0.0
    for own, fraction in by_length(config):
        flops = clip_flops(own, *count_tokens(own))
        target += fraction * flops.target_encoder
        encoder += fraction * flops.encoder
        predictor += fraction * flops.predictor
    second = config.optim.micro_batch / (tflops * 1e12)
    trained, averaged = sum(parameter_counts(config)), parameter_counts(config)[0]
    return Parts(
        clips=config.optim.micro_batch,
        target=target * second,
        context=encoder / 3 * second,
        predictor=predictor / 3 * second,
        backward=(encoder + predictor) * 2 / 3 * second,
        optimizer=ADAM * trained / (memory * 1e9),
        ema=EMA * averaged / (memory * 1e9),
    )


def bytes_of(config: Config, precision: str, devices: int) -> Bytes:
    """Gradients are reduced in fp32, weights are gathered in the precision that they run in."""
    encoder, predictor = parameter_counts(config)
    low = 2 if precision == "bf16" else 4
    capacity = bucket_capacity(encoder + predictor, devices)
    growing = FIRST.bit_length() - 1  # smaller buckets at the start
    own, teacher = (-(-n // capacity) + growing for n in (encoder + predictor, encoder))
    return Bytes(
        4.0 * (encoder + predictor), low * (encoder + predictor), low * encoder, own, teacher
    )


def predictions(
    config: Config, precision: str, parts: Parts, links: Links, weak: bool = False
) -> dict[int, dict[int, Step]]:
    """By number of devices, then by stage. Those are left out that do not divide the config's
    global batch; with `weak` it is a micro-batch for each device."""
    micro, found = config.optim.micro_batch, {}
    for devices in DEVICES:
        sizes = bytes_of(config, precision, devices)
        batch = devices * micro if weak else config.optim.global_batch
        if batch % devices == 0:
            found[devices] = {
                stage: step_on(devices, stage, parts, sizes, links, batch, micro)
                for stage in STAGES
            }
    return found


def efficiency(
    found: dict[int, dict[int, Step]], devices: int, stage: int, kind: str, weak: bool = False
) -> float:
    """Time of the forward and backward passes alone, divided by that of the step."""
    alone = found[1][0].compute / (1 if weak else devices)
    return alone / getattr(found[devices][stage], kind)


def text_of(found: dict[int, dict[int, Step]], weak: bool) -> str:
    """Step times and efficiencies, then how stage 1's step divides."""
    steps = [("GPUs", "micro-batch", "accumulation", *(f"stage {stage}" for stage in STAGES))]
    names = "compute", "update", "gradients", "weights", "teacher", "waits"
    stage_1 = [("GPUs", *names)]
    for devices, stages in found.items():
        cells = []
        for stage, step in stages.items():
            runs, apart, best = (efficiency(found, devices, stage, kind, weak) for kind in KINDS)
            cells.append(f"{1e3 * step.exposed:.0f} ms, {runs:.0%} ({apart:.0%} … {best:.0%})")
        one = stages[1]
        steps.append((str(devices), f"{one.micro_batch:g}", f"{one.accumulation:g}", *cells))
        seconds = one.compute, one.update, one.reduction, one.weights, one.teacher, one.waits
        stage_1.append((str(devices), *(f"{1e3 * s:.1f}" for s in seconds)))
    return (
        "predicted step time, and efficiency as the engine runs (in brackets: if nothing were "
        f"hidden, and if all were)\n{text_table(steps)}\n\n"
        f"stage 1, ms per step\n{text_table(stage_1)}"
    )


def draw(found: dict[int, dict[int, Step]], title: str, path: Path, weak: bool) -> None:
    """Efficiency by number of GPUs, and how stage 1's step divides."""
    devices = list(found)
    with picture(path, (11, 4.4), columns=2, grid="y") as (figure, (left, right)):
        for stage, color in zip(STAGES, ("#969696", "#3182bd", "#31a354", "#e6550d"), strict=True):
            for kind, style in (("exposed", "o-"), ("apart", ":")):
                values = [100 * efficiency(found, n, stage, kind, weak) for n in devices]
                label = f"stage {stage}" if kind == "exposed" else None
                left.plot(devices, values, style, color=color, label=label, markersize=4)
        left.set(xscale="log", ylim=(0, 105), xlabel="GPUs", ylabel="predicted efficiency, %")
        left.set_xticks(devices, [str(n) for n in devices], fontsize=8)
        left.minorticks_off()
        left.set_title("as the engine runs; dotted: if nothing were hidden", fontsize=9)
        left.legend(frameon=False)
        bottom = [0.0] * len(devices)
        steps = [by_stage[1] for by_stage in found.values()]
        for label, seconds in {
            "forward and backward": [step.compute for step in steps],
            "AdamW and EMA": [step.update for step in steps],
            "waits for communication": [step.waits for step in steps],
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


def positive(text: str) -> float:
    """Parse a positive number, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a positive number")
    return value


def run(options: argparse.Namespace) -> int:
    """Predict from measured or stated parts, or check the model on this machine."""
    check_json(options.json)
    if options.check:
        from scale.check import check

        return check(options.config or CONFIGS / "tiny.json", options.json)
    if (options.measured is None) == (options.tflops is None):
        raise UserError(
            f"FILE: found {options.measured or 'none'} and --tflops {options.tflops or 'none'}, "
            "expected one of them: the file of `python bench/throughput.py --json FILE`, or a rate "
            "at which FLOPs are assumed to run; or use --check"
        )
    if options.measured:
        parts, measured = read_parts(options.measured)
        path = options.config or CONFIGS / measured["config"]
        if path.name != measured["config"]:
            raise UserError(
                f"--config: found {path.name}, but {options.measured} was measured with "
                f"{measured['config']}, expected the same config; measure {path.name} first"
            )
        config, source = load_config(path), f"parts measured on {measured['device']}"
    else:
        path = options.config or CONFIGS / "vith16.json"
        config = load_config(path)
        parts = stated_parts(config, options.tflops, options.memory)
        source = f"no measurement: FLOPs at {options.tflops:g} TFLOP/s"
        measured = {"config": path.name, "precision": "bf16", "device": source}
    links = Links(
        options.per_host, options.inside * 1e9, options.between * 1e9, options.latency / 1e6
    )
    found = predictions(config, measured["precision"], parts, links, options.weak)
    batch = f"{config.optim.micro_batch} clips a GPU"
    batch = batch if options.weak else f"global batch {config.optim.global_batch}"
    title = (
        f"{measured['config']}, {batch}, {source}\nstated links: {options.inside:g} GB/s within "
        f"{options.per_host} GPUs, {options.between:g} GB/s between hosts, {options.latency:g} us "
        "a message"
    )
    print(f"{title}\n\n{text_of(found, options.weak)}")
    if options.json:
        rows = [
            {"devices": n, "stage": stage, **vars(step), "exposed": step.exposed}
            for n, steps in found.items()
            for stage, step in steps.items()
        ]
        result = {"measured": measured["config"], "device": measured["device"]}
        result |= {"cpu": measured.get("cpu"), "steps": rows}  # none in files of older versions
        write_json(options.json, result)
        draw(found, title, options.json.with_suffix(".png"), options.weak)
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
    parser.add_argument(
        "--tflops",
        type=positive,
        help="rate of the passes, TFLOP/s a GPU, where nothing is measured",
    )
    parser.add_argument(
        "--memory",
        type=positive,
        default=2300.0,
        help="with --tflops: rate of AdamW and the EMA, GB/s (default: 2300)",
    )
    parser.add_argument(
        "--weak", action="store_true", help="a micro-batch for each GPU, whatever their number"
    )
    parser.add_argument("--per-host", type=count, default=8, help="GPUs per host (default: 8)")
    parser.add_argument(
        "--inside",
        type=positive,
        default=315.0,
        help="bandwidth within a host, GB/s per GPU (default: 315)",
    )
    parser.add_argument(
        "--between",
        type=positive,
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
    add_json_argument(parser)
    options = parser.parse_args(arguments)
    return exit_status(lambda: run(options))


if __name__ == "__main__":
    raise SystemExit(main())
