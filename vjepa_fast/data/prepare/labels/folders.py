"""The folder that a video lies in as its class (`vjepa-fast index --label-from-folders`)."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vjepa_fast.data.manifest.class_map import (
    CLASSES_FILE,
    add_classes,
    check_classes,
    read_classes,
)
from vjepa_fast.data.manifest.labels import are_integers
from vjepa_fast.data.manifest.location import archive_of, file_of
from vjepa_fast.errors import UserError


@dataclass(frozen=True)
class FolderLabel:
    """A label that says in which folder below `directory` a video lies.

    Attributes:
        name: of the label.
        directory: its folders are the classes, also those in tar archives that lie in it.
        classes: a map of classes (`classes.json`) whose numbers are taken; None: those that the
            manifest's folder has, or new ones in the order of the names.
    """

    name: str
    directory: str | os.PathLike
    classes: str | os.PathLike | None = None

    def numbers(
        self, paths: Iterable[str], manifest_folder: Path
    ) -> tuple[dict[str, int], dict[str, list[str]]]:
        """The class of each video, and what `Entries.class_names` is then; writes the map.

        Folders that are all named by integers are these classes, without a map.

        Args:
            paths: the videos.
            manifest_folder: where the map of classes is kept.

        Raises:
            UserError: a video lies in no folder, the names are integers and others, or the numbers
                of `classes` contradict those that the manifest's folder has.
        """
        directory = os.path.abspath(self.directory)
        found = {path: _class_of(path, directory) for path in paths}
        names = sorted(set(found.values()))
        if are_integers(names, f"{directory}, its folders"):
            if self.classes is not None:
                raise UserError(
                    f"--classes: found {self.classes} beside folders that are named by integers, "
                    "which are the classes' numbers already, expected names; leave it out"
                )
            return {path: int(name) for path, name in found.items()}, {}
        names = [*self._given(manifest_folder), *names]
        class_names = add_classes(manifest_folder, {self.name: names})
        known = {name: i for i, name in enumerate(class_names[self.name])}
        return {path: known[name] for path, name in found.items()}, class_names

    def _given(self, manifest_folder: Path) -> list[str]:
        """The names in `classes`."""
        if self.classes is None:
            return []
        given = read_classes(self.classes).get(self.name)
        if given is None:
            raise UserError(
                f"--classes: found no classes of {self.name!r} in {self.classes}, expected the "
                f"{CLASSES_FILE} of a manifest with that label; correct the path"
            )
        check_classes(manifest_folder, self.name, given, f"--classes {self.classes}")
        return given


def _class_of(path: str, directory: str) -> str:
    """The first folder below `directory` on the way to a video, also within a tar archive."""
    outer = os.path.relpath(file_of(path), directory).split(os.sep)[:-1]
    inner = []
    if archive := archive_of(path):
        member = posixpath.normpath("/" + path.removeprefix(f"{archive}::"))
        inner = member.lstrip("/").split("/")[:-1]
    folders = [*outer, *inner]
    if not folders or not folders[0].strip():
        raise UserError(
            f"--label-from-folders: found {path} outside of the folders of classes, expected every "
            f"video in a folder below {directory}; move it into one or elsewhere"
        )
    return folders[0].strip()
