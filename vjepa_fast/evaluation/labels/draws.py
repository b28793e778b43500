"""Which videos carry labels: validation split and draws for low-shot; the order of an epoch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vjepa_fast.masks.philox import STREAM_PROBE_ORDER, STREAM_VALIDATION, draw, uniform


def held_out(count: int, share: float, seed: int) -> np.ndarray:
    """Which videos of a manifest are for validation, a plain draw: bool [count].

    At least one is, and one is not, of two or more.
    """
    keys = uniform(draw(seed, STREAM_VALIDATION, np.arange(count), 1)[:, 0])
    found = np.zeros(count, dtype=bool)
    found[np.argsort(keys, kind="stable")[: min(max(1, round(share * count)), count - 1)]] = True
    return found


def balanced_draw(classes: Tensor, share: float, seed: int) -> Tensor:
    """Draw the videos that carry labels: the same share of every class.

    Args:
        classes: int64 [n].
        share: in (0, 1]; at least one video of each class is kept.
        seed: of the draw.

    Returns:
        indices of the drawn videos in ascending order, int64 [m].
    """
    generator = torch.Generator().manual_seed(seed)
    counts, drawn = classes.unique(return_counts=True)[1], []
    for own in classes.argsort(stable=True).split(counts.tolist()):
        keep = max(1, round(share * len(own)))
        drawn.append(own[torch.randperm(len(own), generator=generator)[:keep]])
    return torch.cat(drawn).sort().values


def plain_draw(count: int, share: float, seed: int) -> Tensor:
    """Draw the videos that carry labels, whatever their class: indices as from `balanced_draw`."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[: max(1, round(share * count))].sort().values


def epoch_order(rows: np.ndarray, epoch: int, seed: int) -> np.ndarray:
    """The rows of a manifest in the order of an epoch.

    Rows keep their order among themselves whichever others are there, so a head sees its videos in
    one order, alone or with heads of other videos.

    Args:
        rows: int64 [n].
        epoch: 0 … 2**31 - 1.
        seed: of all epochs.
    """
    keys = draw(seed, STREAM_PROBE_ORDER, np.int64(epoch) << 32 | rows, 2)
    return rows[np.lexsort((rows, keys[:, 1], keys[:, 0]))]
