"""Runs the command `features` in this process, and reads what it wrote."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from vjepa_fast import cli


def features(source: Path, run: Path, output: Path, *arguments: str) -> int:
    """The command, with one worker."""
    paths = ["features", str(source), "--checkpoint", str(run), "--output", str(output)]
    return cli.main([*paths, "--workers", "1", *arguments])


def index_of(folder: Path) -> list[dict]:
    """All rows of the index."""
    with open(folder / "index.csv", newline="") as file:
        return list(csv.DictReader(file))


def read(folder: Path) -> tuple[list[dict], Tensor]:
    """The rows of the index that have features, and these features, as docs/features.md reads."""
    rows = [row for row in index_of(folder) if row["shard"]]
    shards = {}
    for name in {row["shard"] for row in rows}:
        path = folder / name
        if path.suffix == ".npz":
            shards[name] = torch.from_numpy(np.load(path)["features"])
        else:
            shards[name] = load_file(path)["features"]
    return rows, torch.stack([shards[row["shard"]][int(row["row"])] for row in rows])


def files(folder: Path) -> dict[str, bytes]:
    """All files below a folder with their content, but the lock."""
    paths = [p for p in folder.rglob("*") if p.is_file() and p.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}
