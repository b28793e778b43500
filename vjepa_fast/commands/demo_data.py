"""`vjepa-fast demo-data`: write a small labeled data set of real video files."""

from __future__ import annotations

import argparse
from pathlib import Path

from vjepa_fast.commands.terminal import add_workers_argument, path_argument, positive_int

HELP = "write a small labeled data set of real video files"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument(
        "--kind",
        default="digits",
        help="digits (default): they move over textures; shapes: they turn, circle, swing or pulse "
        "over patterns, a second set to test what was learned from the first",
    )
    parser.add_argument(
        "--output",
        type=path_argument,
        help="folder to write to (default: data/demo; of shapes, data/shapes)",
    )
    parser.add_argument(
        "--clips", type=positive_int, default=4000, help="training clips (default: 4000)"
    )
    parser.add_argument(
        "--test-clips", type=positive_int, default=1000, help="test clips (default: 1000)"
    )
    parser.add_argument("--codec", default="vp9", help="vp9 (default) or h264")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of all random choices (default: 0)"
    )
    add_workers_argument(parser)


def run(options: argparse.Namespace) -> int:
    """Write the videos and the two manifests, and print where they are."""
    from vjepa_fast.data.prepare.demo.write import make_demo

    train, test = make_demo(
        options.output or Path("data", "demo" if options.kind == "digits" else options.kind),
        clips=options.clips,
        test_clips=options.test_clips,
        codec=options.codec,
        seed=options.seed,
        workers=options.workers,
        kind=options.kind,
    )
    print(f"demo data: {train} and {test}")
    return 0
