"""Shared by the commands: argument types, common arguments, and a text table."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path

from vjepa_fast.paths import expanded


def print_any_name() -> None:
    """Let stdout print what its encoding lacks, e.g. file names that are not UTF-8, as `\\udcff`.

    stderr, and so the log, does that anyway.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def positive_int(text: str) -> int:
    """Parse a positive integer, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a positive integer")
    return int(text)


def path_argument(text: str) -> Path:
    """Parse a path, for argparse. Shells leave the `~` of `--output=~/data` as it is."""
    try:
        return Path(expanded(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def label_argument(text: str) -> str:
    """Parse the name of a label, for argparse: with or without its column's "label_"."""
    name = text.removeprefix("label_").strip()
    if not name:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected the name of a label")
    if "," in name:
        raise argparse.ArgumentTypeError(
            f"found {text!r}, expected a name without commas, which separate labels elsewhere"
        )
    return name


def add_workers_argument(parser: argparse.ArgumentParser) -> None:
    """Add --workers."""
    parser.add_argument(
        "--workers", type=positive_int, help="worker processes (default: one per core)"
    )


def add_config_arguments(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """Add --config and --set, the same as in `vjepa_fast/train.py`.

    Args:
        parser: to add to.
        several: --config takes one or more files, which become a list.
    """
    files = "JSON files of one run, or of the stages of a training" if several else "JSON file"
    parser.add_argument(
        "--config",
        required=True,
        type=path_argument,
        nargs="+" if several else None,
        help=f"{files}, see configs/",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a config key, e.g. optim.lr=1e-4; may be repeated",
    )


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Align cells in columns: the first column on the left, the others on the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
