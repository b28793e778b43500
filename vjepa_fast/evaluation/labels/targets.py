"""What probes learn from manifests: columns of classes, label_<name>, and values, value_<name>."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vjepa_fast.data.manifest.entries import Entries
from vjepa_fast.errors import UserError

TRAIN, VALIDATION, TEST = "train", "validation", "test"
_SHOWN = 20  # classes that a warning names
log = logging.getLogger("vjepa_fast")


@dataclass(frozen=True)
class Target:
    """A column, as heads learn it.

    Attributes:
        name: the column's, without its prefix.
        truth: by split, one for each video of its manifest: classes, int64 [n], -1 where no
            training video has that class; or values in the column's unit, fp64 [n].
        classes: the manifest's number of each class, in the order of logits; () for values.
        names: of the classes, as the class map has them, or their numbers.
        mean, std: of the training values.
    """

    name: str
    truth: Mapping[str, Tensor]
    classes: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    mean: float = 0.0
    std: float = 1.0

    @property
    def outputs(self) -> int:
        """Numbers that a head gives: one for each class, or one value."""
        return len(self.classes) or 1

    @property
    def has_values(self) -> bool:
        """Whether this is a regression."""
        return not self.classes

    def learned(self, split: str) -> Tensor:
        """`truth`, as losses take it: values are standardized by the training videos', fp32."""
        if self.has_values:
            return ((self.truth[split] - self.mean) / self.std).float()
        return self.truth[split]

    @property
    def chance(self) -> float:
        """Test accuracy of always guessing the most frequent training class."""
        frequent = self.truth[TRAIN].mode().values
        return (self.truth[TEST] == frequent).double().mean().item()

    @property
    def error_of_median(self) -> float:
        """Mean absolute error on the test of always guessing the training values' median."""
        return (self.truth[TEST] - self.truth[TRAIN].median()).abs().mean().item()


def read_targets(names: Sequence[str], splits: Mapping[str, Entries]) -> list[Target]:
    """Read the columns of these names from the manifests of all splits.

    Warns of classes that a split lacks.

    Args:
        names: of label_<name> or value_<name> columns.
        splits: `TRAIN`, `TEST` and perhaps `VALIDATION`.

    Raises:
        UserError: a manifest has no such column, a negative class, or no class of the training
            manifest; or all training videos have one class or one value.
    """
    return [_read(name, splits) for name in names]


def _read(name: str, splits: Mapping[str, Entries]) -> Target:
    kinds = {split: _kind(name, entries) for split, entries in splits.items()}
    for split, entries in splits.items():
        if kinds[split] != kinds[TRAIN]:
            raise UserError(
                f"{entries.source}: found {kinds[split]}_{name}, expected {kinds[TRAIN]}_{name}, "
                f"which {splits[TRAIN].source} has; name the columns alike"
            )
    if kinds[TRAIN] == "value":
        return _values(name, splits)
    return _classes(name, splits)


def _kind(name: str, entries: Entries) -> str:
    if name in entries.label_names:
        return "label"
    if name in entries.value_names:
        return "value"
    there = [*entries.label_names, *entries.value_names]
    raise UserError(
        f"{entries.source}: found labels {', '.join(there) or 'none'}, expected {name}; name "
        "labels that have a column label_<name> or value_<name>"
    )


def _values(name: str, splits: Mapping[str, Entries]) -> Target:
    found = {
        split: torch.from_numpy(entries.column(f"value_{name}").astype(np.float64))
        for split, entries in splits.items()
    }
    train = found[TRAIN]
    mean, std = train.mean().item(), train.std(correction=0).item()
    if not std > 1e-12 * abs(mean):
        raise UserError(
            f"{splits[TRAIN].source}: found the same value_{name} {mean:g} for all "
            f"{len(train)} videos, expected several values; check the column"
        )
    return Target(name, found, mean=mean, std=std)


def _classes(name: str, splits: Mapping[str, Entries]) -> Target:
    column = f"label_{name}"
    for entries in splits.values():
        numbers = entries.column(column)
        if negative := int((numbers < 0).sum()):
            raise UserError(
                f"{entries.source}: found {negative} of {len(numbers)} videos with a negative "
                f"number in {column} (the lowest: {numbers.min()}), expected 0 or more, since -1 "
                "often means no label; leave these videos out, or number their classes from 0"
            )
    train = splits[TRAIN]
    classes, numbered = np.unique(train.column(column), return_inverse=True)
    names = _names(train, name, classes)
    if len(classes) < 2:
        raise UserError(
            f"{train.source}: found only the class {names[0]} in {column}, expected two or more; "
            "check the column"
        )
    truth = {TRAIN: torch.from_numpy(numbered.reshape(-1).astype(np.int64))}
    for split, entries in splits.items():
        if split == TRAIN:
            continue
        truth[split] = torch.from_numpy(_number(entries, name, classes, train))
        _compare(entries, name, truth[split], names, train)
    return Target(name, truth, tuple(classes.tolist()), tuple(names))


def _names(entries: Entries, name: str, classes: np.ndarray) -> list[str]:
    known = entries.class_names.get(name)
    return [known[number] if known else str(number) for number in classes.tolist()]


def _number(entries: Entries, name: str, classes: np.ndarray, train: Entries) -> np.ndarray:
    """The classes of a manifest's videos: by name where they have names, else by number."""
    own, theirs = (e.class_names.get(name) for e in (train, entries))
    if (own is None) != (theirs is None):
        with_names, without = (train, entries) if own else (entries, train)
        raise UserError(
            f"{without.source}: found numbers in label_{name}, expected names of classes, as "
            f"{with_names.source} has; write both manifests in one way"
        )
    if own is not None:
        entries = entries.numbered_as(name, own)  # others get numbers that `classes` lacks
    numbers = entries.column(f"label_{name}")
    nearest = np.minimum(np.searchsorted(classes, numbers), len(classes) - 1)
    return np.where(classes[nearest] == numbers, nearest, -1)


def _compare(
    entries: Entries, name: str, truth: Tensor, names: Sequence[str], train: Entries
) -> None:
    """Refuse labels that do not match, and warn of classes that one of two manifests lacks."""
    unknown = (truth < 0).numpy()
    if unknown.all():
        other = _names(entries, name, np.unique(entries.column(f"label_{name}")))
        raise UserError(
            f"{entries.source}: found no class of {train.source} in label_{name} but "
            f"{_listed(other)}, expected the same ones, such as {_listed(names)}; check the labels"
        )
    if unknown.any():
        other = _names(entries, name, np.unique(entries.column(f"label_{name}")[unknown]))
        log.warning(
            "%s: found %d of %d videos of %d classes of label_%s that no training video has (%s); "
            "they count as wrong",
            entries.source,
            unknown.sum(),
            len(unknown),
            len(other),
            name,
            _listed(other),
        )
    absent = sorted(set(range(len(names))) - set(truth.tolist()))
    if absent:
        log.warning(
            "%s: found no video of %d of the %d classes of label_%s (%s); they do not count",
            entries.source,
            len(absent),
            len(names),
            name,
            _listed([names[i] for i in absent]),
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + ", …" * (len(names) > _SHOWN)
