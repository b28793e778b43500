"""The console script: vjepa-fast COMMAND …"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from vjepa_fast import __version__
from vjepa_fast.errors import UserError, exit_status
from vjepa_fast.train import set_up_logging


def _index(options: argparse.Namespace) -> int:
    from vjepa_fast.data.prepare.index import index_command

    return index_command(options.directory, options.output, options.workers, options.deep)


def _transcode(options: argparse.Namespace) -> int:
    from vjepa_fast.data.prepare.transcode import transcode_command

    return transcode_command(
        options.manifest,
        options.output,
        options.codec,
        options.short_side,
        options.gop,
        options.workers,
    )


def _demo_data(options: argparse.Namespace) -> int:
    from vjepa_fast.data.prepare.demo import make_demo

    train, test = make_demo(
        options.output,
        clips=options.clips,
        test_clips=options.test_clips,
        codec=options.codec,
        seed=options.seed,
        workers=options.workers,
    )
    print(f"demo data: {train} and {test}")
    return 0


def _info(options: argparse.Namespace) -> int:
    from vjepa_fast.commands.info import info_text
    from vjepa_fast.config import load_config

    print(info_text(load_config(options.config, options.set)))
    return 0


def _masks(options: argparse.Namespace) -> int:
    from vjepa_fast.commands.masks import masks_command
    from vjepa_fast.config import load_config

    return masks_command(load_config(options.config, options.set), options.output)


def _report(options: argparse.Namespace) -> int:
    from vjepa_fast.commands.report import report_command

    return report_command(options.run_folder, options.output)


def _probe(options: argparse.Namespace) -> int:
    from vjepa_fast.evaluation.probe import probe_table, run_probe

    labels = [name.strip() for name in options.labels.split(",") if name.strip()]
    if not labels:
        raise UserError(
            f"--labels: found {options.labels!r}, expected names as in label_<name>; name at least "
            "one, e.g. --labels digit,direction"
        )
    result = run_probe(options.checkpoint, labels, options.train, options.test, options.label_share)
    print(probe_table(result))
    folder = Path(result["file"]).parent
    there = ("probe.json", "curves.png", "metrics.jsonl", "checkpoints")
    found = ", ".join(name for name in there if (folder / name).exists())
    print(f"run folder: {folder} ({found})")
    return 0


def _count(text: str) -> int:
    """A number of processes or clips, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number from 1 on")
    return int(text)


def _share(text: str) -> float:
    """A share above 0 and up to 1, for argparse."""
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a number above 0, at most 1")
    return share


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vjepa-fast", description="Fast V-JEPA pretraining; `vjepa_fast/train.py` pretrains."
    )
    parser.add_argument("--version", action="version", version=f"vjepa_fast {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    index = commands.add_parser("index", help="scan a folder of videos into a manifest")
    index.add_argument("directory", type=Path)
    index.add_argument(
        "--output", type=Path, required=True, help="manifest to write, .csv or .parquet"
    )
    index.add_argument("--workers", type=_count, help="processes (default: one a core)")
    index.add_argument(
        "--deep", action="store_true", help="also decode a little at start, middle and end"
    )
    index.set_defaults(run=_index)

    transcode = commands.add_parser(
        "transcode", help="small copies of a manifest's videos that decode faster"
    )
    transcode.add_argument("manifest", type=Path)
    transcode.add_argument("--output", type=Path, required=True, help="folder for the copies")
    transcode.add_argument("--codec", default="h264", help="h264 (default) or vp9")
    transcode.add_argument("--short-side", type=_count, default=320, help="pixels (320)")
    transcode.add_argument("--gop", type=_count, default=12, help="frames per key frame (12)")
    transcode.add_argument("--workers", type=_count, help="processes (default: one a core)")
    transcode.set_defaults(run=_transcode)

    demo = commands.add_parser("demo-data", help="write the small data set of real video files")
    demo.add_argument("--output", type=Path, default=Path("data/demo"), help="default: data/demo")
    demo.add_argument("--clips", type=_count, default=4000, help="training clips (4000)")
    demo.add_argument("--test-clips", type=_count, default=1000, help="test clips (1000)")
    demo.add_argument("--codec", default="vp9", help="vp9 (default) or h264")
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument("--workers", type=_count, help="processes (default: one a core)")
    demo.set_defaults(run=_demo_data)

    info = commands.add_parser(
        "info", help="what a config means: tokens, parameters, FLOPs, memory"
    )
    info.add_argument("--config", type=Path, required=True)
    info.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    info.set_defaults(run=_info)

    masks = commands.add_parser("masks", help="draw a config's masks over a clip, count tokens")
    masks.add_argument("--config", type=Path, required=True)
    masks.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    masks.add_argument("--output", type=Path, default=Path("masks.png"), help="default: masks.png")
    masks.set_defaults(run=_masks)

    report = commands.add_parser("report", help="a run's curves, pictures and tables as one page")
    report.add_argument("run_folder", type=Path, metavar="RUN", help="e.g. runs/tiny")
    report.add_argument("--output", type=Path, help="default: RUN/report.html")
    report.set_defaults(run=_report)

    probe = commands.add_parser("probe", help="attentive probe on a checkpoint's frozen features")
    probe.add_argument("--checkpoint", type=Path, required=True, help="checkpoint or run folder")
    probe.add_argument("--labels", required=True, help="e.g. digit,direction")
    probe.add_argument("--train", type=Path, help="manifest (default: the run's own)")
    probe.add_argument("--test", type=Path, help="manifest (default: test.csv beside it)")
    probe.add_argument(
        "--label-share",
        type=_share,
        default=1.0,
        help="share of the training clips that carry labels, e.g. 0.1 (default: 1); below 1 the "
        "mean of three draws, as in the paper's low-shot evaluation",
    )
    probe.set_defaults(run=_probe)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status. A user's mistake is one sentence and status 2."""
    options = _parser().parse_args(arguments)
    set_up_logging()
    return exit_status(lambda: options.run(options))


if __name__ == "__main__":
    raise SystemExit(main())
