"""`vjepa-fast index`: scan a folder of videos into a manifest."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from vjepa_fast.commands.terminal import add_workers_argument
from vjepa_fast.errors import UserError

HELP = "scan a folder of videos into a manifest"
SHOWN = 20  # rejected files that are printed; the list of rejected files has all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument("directory", type=Path, help="folder with videos, images or .tar archives")
    parser.add_argument(
        "--output", type=Path, required=True, help="manifest to write, .csv or .parquet"
    )
    add_workers_argument(parser)
    parser.add_argument(
        "--deep",
        action="store_true",
        help="also decode a few frames at the start, middle and end of each video",
    )


def run(options: argparse.Namespace) -> int:
    """Write the manifest; print the rejected files with their reasons and a summary.

    Raises:
        UserError: no file is usable.
    """
    from vjepa_fast.data.prepare.index import index_directory

    directory, output = options.directory, options.output
    entries, rejected = index_directory(
        directory, output, options.workers, progress=True, deep=options.deep
    )
    for path, reason in rejected[:SHOWN]:
        print(f"rejected {path}: {reason}")
    if len(rejected) > SHOWN:
        print(f"… and {len(rejected) - SHOWN} more, see {output}.rejected.csv")
    counts = Counter(reason.split(" (")[0] for _, reason in rejected)
    for reason, count in counts.most_common():
        print(f"{count:>8} rejected: {reason}")
    if not entries:
        raise UserError(
            f"{directory}: found {len(rejected)} unusable files and no usable video, expected at "
            "least one; see the reasons above"
        )
    frames = sum(entry.frames for entry in entries)
    print(f"{output}: {len(entries)} videos, {frames} frames; {len(rejected)} files rejected")
    return 0
