"""Step time and efficiency on 1 … 1024 GPUs at each ZeRO stage, on paper:

    python bench/throughput.py --json step.json      # on one GPU
    python bench/scaling.py step.json                # its parts, stated links
    python bench/scaling.py --check                  # the model against 1, 2 and 4 processes here

The parts of a step are measured; what is sent, and how fast, is counted and stated (--inside,
--between: GB/s of one GPU within its host and to other hosts; the defaults are 70 % of the data
sheets' 450 GB/s of an H100's NVLink and 50 GB/s of a 400 Gb/s InfiniBand port for each GPU).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from scale.model import Bytes, Links, Parts, Step, step_on
from throughput import CONFIGS

from vjepa_fast.commands.cost_of_config import parameter_counts
from vjepa_fast.commands.terminal import text_table
from vjepa_fast.config import Config, load_config
from vjepa_fast.errors import UserError, exit_status

DEVICES = tuple(1 << k for k in range(11))
STAGES = (0, 1, 2, 3)
NAMES = {"optimiser": "optimizer", "EMA": "ema"}  # the throughput benchmark's: ours


def read_parts(path: Path) -> tuple[Parts, dict]:
    """The parts that bench/throughput.py measured, and its whole file.

    Raises UserError where it isn't one of its files.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        seconds = {row["part"]: row["ours_ms"] / 1e3 for row in result["parts"]}
        named = {NAMES.get(part, part): seconds[part] for part in seconds if part != "masks"}
        return Parts(clips=result["clips"], **named), result
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: found {type(error).__name__} ({error}), expected a file that "
            "`python bench/throughput.py --json FILE` wrote; make one"
        ) from None


def bytes_of(config: Config, precision: str) -> Bytes:
    """Gradients travel in fp32, as they accumulate; weights in the precision that they run in."""
    encoder, predictor = parameter_counts(config)
    low = 2 if precision == "bf16" else 4
    return Bytes(4.0 * (encoder + predictor), low * (encoder + predictor), low * encoder)


def predictions(
    config: Config, precision: str, parts: Parts, links: Links
) -> dict[int, dict[int, Step]]:
    """By number of devices that share the config's global batch, then by stage."""
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
    """Of the best that one device could do, times the devices."""
    alone = getattr(found[1][0], kind)
    return alone / devices / getattr(found[devices][stage], kind)


def text_of(found: dict[int, dict[int, Step]]) -> str:
    """Step times and efficiencies, then where stage 1's communication goes."""
    whole = [("GPUs", "clips each", "x", *(f"stage {stage}" for stage in STAGES))]
    names = "compute", "update", "gradients", "weights", "teacher", "hidden", "could be hidden"
    sent = [("GPUs", *names)]
    for devices, steps in found.items():
        cells = []
        for stage, step in steps.items():
            as_runs, hidden = (
                efficiency(found, devices, stage, kind) for kind in ("exposed", "overlapped")
            )
            cells.append(f"{1e3 * step.exposed:.0f} ms, {as_runs:.0%} ({hidden:.0%})")
        one = steps[1]
        whole.append((str(devices), f"{one.micro_batch:g}", f"{one.accumulation:g}", *cells))
        milliseconds = (
            one.compute,
            one.update,
            one.reduction,
            one.weights,
            one.teacher,
            one.passing,
            one.hidden,
        )
        sent.append((str(devices), *(f"{1e3 * seconds:.1f}" for seconds in milliseconds)))
    return (
        "a step, and its efficiency as the engine runs (in brackets: with all hidden that could "
        f"be)\n{text_table(whole)}\n\nstage 1, ms\n{text_table(sent)}"
    )


def draw(found: dict[int, dict[int, Step]], title: str, path: Path) -> None:
    """Efficiency by number of GPUs, and where stage 1's step goes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    devices = list(found)
    for stage, colour in zip(STAGES, ("#969696", "#3182bd", "#31a354", "#e6550d"), strict=True):
        for kind, style in (("exposed", "o-"), ("overlapped", ":")):
            values = [100 * efficiency(found, n, stage, kind) for n in devices]
            label = f"stage {stage}" if kind == "exposed" else None
            left.plot(devices, values, style, color=colour, label=label, markersize=4)
    left.set(xscale="log", ylim=(0, 105), xlabel="GPUs", ylabel="efficiency, %")
    left.set_xticks(devices, [str(n) for n in devices], fontsize=8)
    left.minorticks_off()
    left.set_title("as the engine runs; dotted: all hidden that could be", fontsize=9)
    left.legend(frameon=False)
    bottom = [0.0] * len(devices)
    steps = [by_stage[1] for by_stage in found.values()]
    for label, seconds in {
        "forward and backward": [step.compute for step in steps],
        "AdamW and EMA": [step.update for step in steps],
        "gradients": [step.reduction for step in steps],
        "weights": [step.weights for step in steps],
        "target encoder, what isn't hidden": [step.teacher - step.passing for step in steps],
    }.items():
        share = [100 * part / step.exposed for part, step in zip(seconds, steps, strict=True)]
        right.bar([str(n) for n in devices], share, bottom=bottom, label=label)
        bottom = [b + s for b, s in zip(bottom, share, strict=True)]
    right.set(xlabel="GPUs", ylabel="share of a step, %", ylim=(0, 100))
    right.set_title("where stage 1's step goes", fontsize=9)
    right.tick_params(axis="x", labelsize=8)
    right.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    for axes in (left, right):
        axes.grid(axis="y", color="0.9")
        axes.set_axisbelow(True)
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def run(options: argparse.Namespace) -> int:
    """Predict from a file of measured parts, or check the model here."""
    if options.check:
        from scale.check import check

        return check(options.config or CONFIGS / "tiny.json", options.json)
    if options.measured is None:
        raise UserError(
            "FILE: found none, expected what `python bench/throughput.py --json FILE` wrote; name "
            "it, or give --check"
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
        f"{measured['device']}, links stated: {options.inside:g} GB/s within {options.per_host} "
        f"GPUs, {options.between:g} GB/s between"
    )
    print(f"{title}\n\n{text_of(found)}")
    if options.json:
        rows = [
            {"devices": n, "stage": stage, **vars(step), "exposed": step.exposed}
            for n, steps in found.items()
            for stage, step in steps.items()
        ]
        result = {"measured": measured["config"], "device": measured["device"], "steps": rows}
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        draw(found, title, options.json.with_suffix(".png"))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """0; 2 for a mistake."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("measured", nargs="?", type=Path, metavar="FILE")
    parser.add_argument(
        "--config", type=Path, help="where the measured JSON file is, if not in configs/"
    )
    parser.add_argument("--per-host", type=int, default=8, help="GPUs of a host (8)")
    parser.add_argument("--inside", type=float, default=315.0, help="GB/s within a host (315)")
    parser.add_argument("--between", type=float, default=35.0, help="GB/s to other hosts (35)")
    parser.add_argument("--latency", type=float, default=10.0, help="microseconds a message (10)")
    parser.add_argument("--check", action="store_true", help="1, 2 and 4 gloo processes here")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all figures; a picture beside")
    options = parser.parse_args(arguments)
    return exit_status(lambda: run(options))


if __name__ == "__main__":
    raise SystemExit(main())
