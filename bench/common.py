"""Shared by the benchmarks: argument types, machine facts, spreads, output files and pictures."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton

from vjepa_fast import __version__
from vjepa_fast.errors import UserError
from vjepa_fast.training.monitoring.environment import processor

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIGS = REPOSITORY / "configs"
DEFAULT_CONFIG = {"cuda": "vitl16.json", "cpu": "tiny.json"}


def at_least(smallest: int) -> Callable[[str], int]:
    """An argparse type: a whole number, `smallest` or more."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < smallest:
            raise argparse.ArgumentTypeError(
                f"found {text!r}, expected a whole number, {smallest} or more"
            )
        return int(text)

    return parse


count = at_least(1)


def new_file(text: str) -> Path:
    """An argparse type: an empty file, made here so that a path that can't be written is an error
    before anything is timed."""
    try:
        Path(text).open("a").close()
    except OSError as error:
        raise argparse.ArgumentTypeError(
            f"found {text} ({error.strerror}), expected a writable file; make its folder first"
        ) from error
    return Path(text)


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    """Add --json; see `check_json`."""
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="file for all results; a picture is saved beside"
    )


def check_json(path: Path | None) -> None:
    """Raises UserError if a JSON file or the picture beside it cannot be written at the end."""
    if path and (path.is_dir() or not path.parent.is_dir() or path.suffix == ".png"):
        raise UserError(
            f"--json: found {path}, expected a file in an existing folder, not a .png, which is "
            "the picture's name; name another, e.g. result.json"
        )


def write_json(path: Path, result: dict) -> None:
    """Indented, with a final newline."""
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def check_one_process(script: str) -> None:
    """Raises UserError under a launcher of several processes."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world != 1:
        raise UserError(
            f"WORLD_SIZE: found {world}, expected 1; start bench/{script} without a launcher"
        )


def commit_of(folder: Path) -> str | None:
    """The commit of a checkout; None where git does not know it."""
    git = ["git", "-c", "safe.directory=*", "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(git, cwd=folder, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def describe(device: torch.device) -> dict[str, Any]:
    """Machine, versions and commit: what a row needs to be compared with another."""
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if cuda else f"CPU, {processor()}",
        "cpu": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "triton_kernels": cuda and os.environ.get("VJEPA_FAST_KERNELS") != "reference",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "vjepa_fast": __version__,
        "commit": commit_of(REPOSITORY),
    }


def machine_text(facts: dict[str, Any]) -> str:
    """The facts of `describe` on one line, a CPU's name once."""
    once = facts if facts["cpu"] not in facts["device"] else {**facts, "cpu": None}
    return ", ".join(f"{name}: {value}" for name, value in once.items() if value is not None)


def spread(values: np.ndarray) -> dict[str, float]:
    """Median, 20th and 80th percentile."""
    low, middle, high = np.percentile(values, (20, 50, 80)).tolist()
    return {"p20": low, "p50": middle, "p80": high}


def spread_text(
    values: dict[str, float], digits: int = 1, scale: float = 1.0, unit: str = ""
) -> str:
    """`p50 unit (p20 … p80)`."""
    low, middle, high = (f"{scale * values[p]:.{digits}f}" for p in ("p20", "p50", "p80"))
    return f"{middle}{unit} ({low} … {high})"


@contextmanager
def picture(
    path: Path, size: tuple[float, float], rows: int = 1, columns: int = 1, grid: str = "both"
) -> Iterator[tuple[Any, Any]]:
    """A matplotlib figure and its axes (an array of them if there are several), saved at the end.

    Args:
        path: the PNG file.
        size: inches, width and height.
        grid: direction of the grid lines: "x", "y" or "both".
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained")
    for one in np.ravel(axes):
        one.grid(axis=grid, color="0.9")
        one.set_axisbelow(True)
    yield figure, axes
    figure.savefig(path, dpi=110)
    plt.close(figure)
