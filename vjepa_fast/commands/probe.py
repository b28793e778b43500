"""`vjepa-fast probe`: an attentive probe on a checkpoint's frozen features."""

from __future__ import annotations

import argparse
from pathlib import Path

from vjepa_fast.commands.terminal import path_argument
from vjepa_fast.errors import UserError

HELP = "train an attentive probe on a checkpoint's frozen features"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument(
        "--checkpoint", type=path_argument, required=True, help="checkpoint or run folder"
    )
    parser.add_argument(
        "--labels", required=True, help="label names, separated by commas, e.g. digit,direction"
    )
    parser.add_argument(
        "--train",
        type=path_argument,
        help="manifest to train the probe on (default: the run's manifest)",
    )
    parser.add_argument(
        "--test",
        type=path_argument,
        help="manifest to test the probe on (default: test.csv in the folder of --train)",
    )
    parser.add_argument(
        "--label-fraction",
        type=_fraction,
        default=1.0,
        help="fraction of the training clips to train on, e.g. 0.1 (default: 1); below 1, "
        "the mean over three random subsets is reported, as in the paper's low-shot evaluation",
    )
    parser.add_argument(
        "--blocks",
        type=int,
        choices=(1, 4),
        default=1,
        help="blocks of the probe: 1 as in V-JEPA, 4 as in V-JEPA 2 (default: 1)",
    )


def _fraction(text: str) -> float:
    """A number above 0, at most 1, for argparse."""
    try:
        fraction = float(text)
    except ValueError:
        fraction = 0.0
    if not 0 < fraction <= 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a number above 0 and up to 1")
    return fraction


def run(options: argparse.Namespace) -> int:
    """Train the probes, write them and probe.json, and print the table of accuracies.

    Raises:
        UserError: no label is named, or see `run_probe`.
    """
    from vjepa_fast.evaluation.probe import run_probe

    labels = [name.strip() for name in options.labels.split(",") if name.strip()]
    if not labels:
        raise UserError(
            f"--labels: found {options.labels!r}, expected names of label_<name> columns; name at "
            "least one, e.g. --labels digit,direction"
        )
    result = run_probe(
        options.checkpoint,
        labels,
        options.train,
        options.test,
        options.label_fraction,
        options.blocks,
    )
    print(probe_table(result))
    folder = Path(result["file"]).parent
    files = ("probe.json", *result["saved"].values(), "curves.png", "metrics.jsonl", "checkpoints")
    found = ", ".join(name for name in files if (folder / name).exists())
    print(f"run folder: {folder} ({found})")
    return 0


def probe_table(result: dict) -> str:
    """The result of `run_probe` as a short table."""
    from vjepa_fast.evaluation.probe import LOW_SHOT_DRAWS, PIXELS, PRETRAINED, RANDOM

    accuracy, kinds = result["accuracy"], (PRETRAINED, RANDOM, PIXELS)
    fraction = result["label_fraction"]
    blocks = result["blocks"]
    low_shot = f", {fraction:.0%} of the labels, mean of {LOW_SHOT_DRAWS} draws"
    lines = [
        f"attentive probe of {blocks} block{'s' * (blocks > 1)} on frozen features"
        f"{low_shot * (fraction < 1)}; accuracy on held-out videos, step {result['step']}",
        f"{'':20}" + "".join(f"{label:>12}" for label in accuracy),
    ]
    for kind in kinds:
        lines.append(f"{kind:20}" + "".join(f"{row[kind]:12.3f}" for row in accuracy.values()))
    lines.append(f"{'chance':20}" + "".join(f"{c:12.3f}" for c in result["chance"].values()))
    for name, videos in result["videos"].items():
        if left_out := len(videos["left_out"]):
            count = videos["used"] + left_out
            lines.append(f"left out: {left_out} of {count} {name} videos, which do not decode")
    margins = [row[PRETRAINED] - row[RANDOM] for row in accuracy.values()]
    lines.append(f"{'pretrained - random':20}" + "".join(f"{m:+12.3f}" for m in margins))
    ahead = [label for label, row in accuracy.items() if row[PIXELS] > row[PRETRAINED]]
    if ahead:
        lines.append(
            f"Raw pixels win on {' and '.join(ahead)}: on pixels, the probe learns its own filters "
            "end to end, which frozen features do not allow."
        )
    return "\n".join(lines)
