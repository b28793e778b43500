"""The columns that somebody added to a manifest, kept when its folder is indexed again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vjepa_fast.data.manifest.entry import ManifestEntry
from vjepa_fast.data.prepare.labels.folders import FolderLabel
from vjepa_fast.errors import UserError


class AddedColumns:
    """The labels and values that a manifest has, or gets by its videos' folders.

    Args:
        old: the manifest as it was; empty if there is none.
        folder_label: a label to give every video, instead of one of that name.

    Attributes:
        class_names: as in `Entries`, for the videos that `added_to` returns.
    """

    def __init__(self, old: Sequence[ManifestEntry], folder_label: FolderLabel | None) -> None:
        own = folder_label.name if folder_label else None
        self._old = {}
        for entry in old:
            labels = {name: label for name, label in entry.labels.items() if name != own}
            if labels or entry.values:
                self._old[entry.path] = {"labels": labels, "values": entry.values}
        self.class_names = dict(old.class_names) if self._old else {}
        self._folder_label = folder_label
        self._by_folder: dict[str, int] = {}

    def check(self, paths: list[str], output: Path) -> None:
        """Indexing again must not lose the columns that somebody added to the manifest."""
        unlabeled = [path for path in paths if path not in self._old]
        if self._old and unlabeled:
            raise UserError(
                f"{output}: found {len(unlabeled)} videos without labels (the first: "
                f"{unlabeled[0]}), expected labels for all videos or for none; write to another "
                "--output and add the labels there, or, if their folders are the classes, give "
                "--label-from-folders again"
            )

    def number(self, paths: list[str], output: Path) -> None:
        """Number the classes of the videos' folders."""
        if label := self._folder_label:
            self.class_names.pop(label.name, None)
            self._by_folder, class_names = label.numbers(paths, output.parent)
            self.class_names |= class_names

    def added_to(self, entry: ManifestEntry) -> ManifestEntry:
        """The entry with its labels and values."""
        entry = replace(entry, **self._old.get(entry.path, {}))
        if label := self._folder_label:
            entry = replace(entry, labels=entry.labels | {label.name: self._by_folder[entry.path]})
        return entry
