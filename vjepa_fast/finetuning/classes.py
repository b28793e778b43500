"""The classes of a label column, and what is wrong with them."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vjepa_fast.data.manifest.entries import Entries
from vjepa_fast.data.manifest.entry import LABEL_PREFIX
from vjepa_fast.errors import UserError

log = logging.getLogger("vjepa_fast")

_SHOWN = 20  # classes that a warning names


@dataclass(frozen=True)
class Classes:
    """The classes that are learned.

    Attributes:
        label: name of the column label_<name>.
        numbers: the number in the manifest of each class, ascending, in the order of the logits.
    """

    label: str
    numbers: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.numbers)

    def index(self, labels: Tensor) -> Tensor:
        """Numbers of the manifest as classes, int64 [n]; -1 where no training video has one."""
        known = torch.tensor(self.numbers)
        nearest = torch.searchsorted(known, labels).clamp(max=len(known) - 1)
        return torch.where(known[nearest] == labels, nearest, -1)


def read_classes(train: Entries, test: Entries, label: str) -> tuple[Classes, Tensor]:
    """The classes of the training videos, and those of the test videos, int64 [n]; -1 is another.

    Test videos of a class without training videos are named in a warning; they count as wrong.

    Raises:
        UserError: a manifest lacks the label or has a negative one, there is only one class, or no
            test video is of a class that is trained.
    """
    found = []
    if label in train.class_names and label in test.class_names:
        test = test.numbered_as(label, train.class_names[label])
    for entries in (train, test):
        if label not in entries.label_names:
            raise UserError(
                f"label: found {label}, but {entries.source} has the labels "
                f"{', '.join(entries.label_names) or 'none'}, expected a column "
                f"{LABEL_PREFIX}{label}; name another label, or add the column"
            )
        column = entries.column(f"{LABEL_PREFIX}{label}")
        if negative := int((column < 0).sum()):
            raise UserError(
                f"{entries.source}: found {negative} of {len(column)} videos with a negative "
                f"number in {LABEL_PREFIX}{label}, expected 0 or more, since -1 often means no "
                "label; leave these videos out, or number their classes from 0"
            )
        found.append(np.unique(column))
    trained, tested = found
    if len(trained) == 1:
        raise UserError(
            f"{train.source}: found one class in {LABEL_PREFIX}{label} ({trained[0]}), expected "
            "at least two; name another label"
        )
    missing = np.setdiff1d(tested, trained)
    if len(missing) == len(tested):
        raise UserError(
            f"{test.source}: found no class in {LABEL_PREFIX}{label} that {train.source} has, "
            "expected the same numbering in both; label both manifests by one class map"
        )
    if len(missing):
        names = ", ".join(map(str, missing[:_SHOWN])) + ", …" * (len(missing) > _SHOWN)
        log.warning(
            "%s: %d of the %d classes of the test videos have no training video (%s); their videos "
            "count as wrong",
            train.source,
            len(missing),
            len(tested),
            names,
        )
    classes = Classes(label, tuple(trained.tolist()))
    numbers = torch.from_numpy(test.column(LABEL_PREFIX + label).astype(np.int64))
    return classes, classes.index(numbers)
