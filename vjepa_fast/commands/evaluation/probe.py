"""`vjepa-fast probe`: heads on a checkpoint's frozen features."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from vjepa_fast.commands.evaluation.probe_table import probe_table
from vjepa_fast.commands.terminal import path_argument, positive_int
from vjepa_fast.errors import UserError

HELP = "train probes on a checkpoint's frozen features"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument(
        "--checkpoint", type=path_argument, required=True, help="checkpoint or run folder"
    )
    parser.add_argument(
        "--labels",
        type=_labels,
        required=True,
        help="columns label_<name> or value_<name>, separated by commas, e.g. digit,direction",
    )
    data = parser.add_argument_group("videos")
    data.add_argument(
        "--train", type=path_argument, help="manifest to learn from (default: the run's first one)"
    )
    data.add_argument(
        "--test",
        type=path_argument,
        help="manifest to test on (default: test.csv in the folder of --train)",
    )
    data.add_argument(
        "--validation",
        type=_share_or_path,
        metavar="SHARE_OR_MANIFEST",
        help="what chooses the best of several heads: a manifest, or a share of --train that is "
        "held out (default: 0.1 if there is a choice, else none)",
    )
    views = parser.add_argument_group("views")
    views.add_argument(
        "--segments", type=positive_int, default=1, help="clips of each video (default: 1)"
    )
    views.add_argument(
        "--crops",
        type=positive_int,
        default=1,
        help="squares of each picture to test on; probabilities are averaged (default: 1, the "
        "middle one)",
    )
    views.add_argument(
        "--augment",
        action="store_true",
        help="train on random times and random resized crops, encoded anew in every epoch "
        "(default: the features of fixed views are stored once)",
    )
    views.add_argument(
        "--flip", action="store_true", help="with --augment, also mirror half of the clips"
    )
    views.add_argument(
        "--frame-positions",
        action="store_true",
        help="add the place of each frame in its video to the features, as V-JEPA does for several "
        "segments",
    )
    views.add_argument(
        "--num-frames", type=positive_int, help="frames of a clip, if other than in training"
    )
    views.add_argument(
        "--crop-size", type=positive_int, help="side of a clip in pixels, if other than in training"
    )
    heads = parser.add_argument_group("probes")
    heads.add_argument(
        "--probe",
        choices=["attentive", "linear", "knn"],
        default="attentive",
        help="attention over all tokens, a linear layer on their mean, or 20 nearest neighbors by "
        "their mean (default: attentive)",
    )
    heads.add_argument(
        "--blocks",
        type=int,
        choices=[1, 4],
        default=1,
        help="of an attentive probe: 1 as in V-JEPA, 4 as in V-JEPA 2 (default: 1)",
    )
    heads.add_argument(
        "--label-shares",
        type=_shares,
        default=(1.0,),
        metavar="SHARES",
        help="shares of the training labels, e.g. 0.05,0.1,0.5 (default: 1)",
    )
    heads.add_argument(
        "--draws",
        type=positive_int,
        help="random draws of labels for each share below 1, of which mean and std are reported "
        "(default: 3)",
    )
    heads.add_argument(
        "--draw",
        choices=["balanced", "plain"],
        help="draw the same share of every class, or of all videos alike (default: balanced)",
    )
    heads.add_argument(
        "--lr",
        type=_positive_numbers,
        help="learning rates, separated by commas; with --weight-decay each pair is a head "
        "(default: 1e-3; of linear probes, which need larger ones, 1e-3,1e-2,1e-1)",
    )
    heads.add_argument(
        "--weight-decay",
        type=_numbers,
        help="weight decays, separated by commas (default: 0.01)",
    )
    heads.add_argument("--epochs", type=positive_int, help="passes over the videos (default: 20)")
    heads.add_argument("--batch", type=positive_int, help="videos of an update (default: 256)")
    heads.add_argument(
        "--baselines",
        type=_baselines,
        default=(),
        help="also probe: random (the encoder before training), pixels; separated by commas",
    )
    heads.add_argument(
        "--seed",
        type=_seed,
        default=0,
        help="of draws, held-out videos, augmentation and weights (default: 0)",
    )
    files = parser.add_argument_group("files")
    files.add_argument(
        "--output",
        type=path_argument,
        help="folder for probe.json, probe.png and the probes (default: the run's)",
    )
    files.add_argument(
        "--store",
        type=path_argument,
        help="folder for features, which later probes use again (default: they are removed at the "
        "end)",
    )
    files.add_argument(
        "--workers",
        type=positive_int,
        help="decoding workers (default: the run's data.num_workers)",
    )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The options in a command line of this command.

    Raises:
        UserError: it has a mistake; no file is looked at.
    """
    parser = _Parser()
    add_arguments(parser)
    options = parser.parse_args(arguments)
    _refuse_without_effect(options)
    return options


def run(options: argparse.Namespace) -> int:
    """Train the probes, write the results, and print a table.

    Raises:
        UserError: see `run_probe`; options that contradict each other.
    """
    from vjepa_fast.data.plan.crops import Augment
    from vjepa_fast.evaluation.labels.grid import Grid
    from vjepa_fast.evaluation.probe import Probing, run_probe
    from vjepa_fast.evaluation.report.write import write_results
    from vjepa_fast.evaluation.settings import ProbeSettings
    from vjepa_fast.evaluation.sources import Views

    _refuse_without_effect(options)
    augment = Augment((0.08, 1.0), (3 / 4, 4 / 3), options.flip) if options.augment else None
    settings = ProbeSettings(
        checkpoint=options.checkpoint,
        labels=options.labels,
        train=options.train,
        test=options.test,
        validation=options.validation,
        probe=options.probe,
        blocks=options.blocks,
        grid=Grid(
            shares=options.label_shares,
            draws=options.draws or 3,
            balanced=options.draw != "plain",
            lrs=options.lr or ((1e-3, 1e-2, 1e-1) if options.probe == "linear" else (1e-3,)),
            weight_decays=options.weight_decay or (0.01,),
            seed=options.seed,
        ),
        epochs=options.epochs or 20,
        batch=options.batch or 256,
        views=Views(options.segments, options.crops, augment, options.frame_positions),
        num_frames=options.num_frames,
        crop_size=options.crop_size,
        baselines=options.baselines,
        output=options.output,
        store=options.store,
        num_workers=options.workers,
    )

    def write(probing: Probing) -> None:
        result = write_results(probing)
        print(probe_table(result))
        files = ("probe.json", result.get("picture", ""), *result["saved"].values())
        print(f"written to {probing.output}: {', '.join(filter(None, files))}")

    run_probe(settings, write)
    return 0


def _refuse_without_effect(options: argparse.Namespace) -> None:
    """Raise UserError for an option that another one makes useless."""
    if options.flip and not options.augment:
        raise UserError("--flip: found it without --augment, expected both; add --augment")
    if options.blocks > 1 and options.probe != "attentive":
        raise UserError(
            f"--blocks: found {options.blocks} with --probe {options.probe}, expected an attentive "
            "probe; leave one of them out"
        )
    for useless, where, expected in (
        (
            ("augment", "lr", "weight_decay", "epochs", "batch") * (options.probe == "knn"),
            "with --probe knn, which is not trained",
            "another probe; leave one of them out",
        ),
        (
            ("draws", "draw") * (min(options.label_shares) == 1),
            "without a share of the labels to draw",
            "--label-shares below 1; add them, or leave it out",
        ),
        (
            ("store",) * options.augment,
            "with --augment, whose features are computed in every epoch and never stored",
            "one of them; leave the other out",
        ),
    ):
        for option in useless:
            if getattr(options, option):
                name = f"--{option.replace('_', '-')}"
                raise UserError(f"{name}: found it {where}, expected {expected}")


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**62:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number of 0 or more")
    return int(text)


def _labels(text: str) -> tuple[str, ...]:
    """Names of labels, with or without their columns' "label_"."""
    return tuple(dict.fromkeys(name.removeprefix("label_") for name in _names(text)))


def _names(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise argparse.ArgumentTypeError(
            f"found {text!r}, expected names of label_<name> columns, e.g. digit,direction"
        )
    return names


def _baselines(text: str) -> tuple[str, ...]:
    names = _names(text)
    if unknown := set(names) - {"random", "pixels"}:
        raise argparse.ArgumentTypeError(
            f"found {', '.join(sorted(unknown))}, expected random, pixels or both"
        )
    return names


def _numbers(text: str) -> tuple[float, ...]:
    try:
        found = tuple(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError:
        found = (-1.0,)
    if not all(0 <= number < float("inf") for number in found):
        raise argparse.ArgumentTypeError(
            f"found {text!r}, expected numbers of 0 or more, separated by commas"
        )
    return found


def _positive_numbers(text: str) -> tuple[float, ...]:
    found = _numbers(text)
    if not all(found):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected numbers above 0")
    return found


def _shares(text: str) -> tuple[float, ...]:
    try:
        found = tuple(sorted({float(part) for part in text.split(",")}))
    except ValueError:
        found = (0.0,)
    if not all(0 < share <= 1 for share in found):
        raise argparse.ArgumentTypeError(
            f"found {text!r}, expected numbers above 0 and up to 1, separated by commas"
        )
    return found


def _share_or_path(text: str) -> float | Path:
    try:
        share = float(text)
    except ValueError:
        return path_argument(text)
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(
            f"found {text!r}, expected a share between 0 and 1, or a manifest"
        )
    return share
