"""Compares a golden position table with the shipped one."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.golden_parity.items import Item, largest
from vjepa_fast.models.positions import position_table


def check_positions(path: Path) -> list[Item]:
    """Rows of each table in the file, named e.g. "D1024_grid14_depth8_uniform1"."""
    items = []
    with np.load(path) as data:
        for name in sorted({name.split("/")[0] for name in data.files}):
            numbers = ("".join(filter(str.isdigit, part)) for part in name.split("_"))
            width, side, depth, uniform = map(int, numbers)
            table = position_table(width, (depth, side, side), bool(uniform))
            rows, values = data[f"{name}/rows"], data[f"{name}/values"]
            # The tolerance is the one published with the golden files.
            items.append(Item(name, largest(table[rows], values), 1e-6))
    return items
