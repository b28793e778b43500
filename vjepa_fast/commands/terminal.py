"""What the commands share at the terminal: kinds of arguments, and a table of text."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def positive_int(text: str) -> int:
    """A whole number from 1 on, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number from 1 on")
    return int(text)


def add_workers_argument(parser: argparse.ArgumentParser) -> None:
    """--workers."""
    parser.add_argument("--workers", type=positive_int, help="processes (default: one per core)")


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """--config and --set, as `vjepa_fast/train.py` has them."""
    parser.add_argument("--config", required=True, type=Path, help="JSON file, see configs/")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a config key, e.g. optim.lr=1e-4; may be repeated",
    )


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells in columns: the first column left-aligned, the others right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
