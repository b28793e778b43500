"""`classes.json` in a manifest's folder: the classes of labels that are names, each with a number.

{"<label>": ["name of class 0", "name of class 1", ...]}. All manifests of a folder share it. A name
keeps its number for ever: names that the file lacks get the next ones.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path

from vjepa_fast.data.manifest.replaced import TEXT_READ, replaced_atomically
from vjepa_fast.errors import UserError
from vjepa_fast.locks import sole_writer

CLASSES_FILE = "classes.json"
log = logging.getLogger("vjepa_fast")


def add_classes(
    folder: str | os.PathLike, classes: Mapping[str, Sequence[str]]
) -> dict[str, list[str]]:
    """Number the classes of labels in a folder's map, which is written only if it lacks one.

    Of several processes one writes and the others wait for it.

    Args:
        folder: the manifest's folder.
        classes: names by label; those that the map lacks are appended to it in this order.

    Returns:
        For each of these labels all names of the map: class i is the i-th.

    Raises:
        UserError: the map is malformed, or lacks a class and cannot be written.
    """
    if not classes:
        return {}
    path = Path(folder) / CLASSES_FILE
    known = read_classes(path)
    if any(_new(names, known.get(label, ())) for label, names in classes.items()):
        try:
            with sole_writer(path, wait=True):
                known = read_classes(path)  # another process may have written it by now
                for label, names in classes.items():
                    listed = known.setdefault(label, [])
                    new = _new(names, listed)
                    if listed and new:
                        log.warning(
                            "%s: found %d classes of %r that are new (the first: %r); they get "
                            "the numbers from %d on",
                            path,
                            len(new),
                            label,
                            new[0],
                            len(listed),
                        )
                    listed += new
                with replaced_atomically(path) as file:
                    json.dump(known, file, ensure_ascii=False, indent=1)
                    file.write("\n")
        except OSError as error:
            raise _unwritable(path, classes, known, error) from None
    return {label: known[label] for label in classes}


def read_classes(path: str | os.PathLike) -> dict[str, list[str]]:
    """The names of the classes by label; empty if there is no such file.

    Raises:
        UserError: the file is no map of classes.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding=TEXT_READ["encoding"], errors=TEXT_READ["errors"])
    except FileNotFoundError:
        return {}
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise _malformed(path, f"no JSON ({error})") from None
    if not isinstance(found, dict):
        raise _malformed(path, f"a {type(found).__name__}")
    for label, names in found.items():
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise _malformed(path, f"something other than a list of names for {label!r}")
        name, count = max(Counter(names).items(), key=itemgetter(1), default=("", 0))
        if count > 1:
            raise _malformed(path, f"{name!r} more than once for {label!r}")
    return found


def check_classes(folder: str | os.PathLike, label: str, names: Sequence[str], source: str) -> None:
    """Raise UserError if a folder's map gives other numbers to a label's classes than their order
    in `names`, which come from `source`.
    """
    path = Path(folder) / CLASSES_FILE
    known = read_classes(path).get(label, [])
    for number, (old, new) in enumerate(zip(known, names, strict=False)):
        if old != new:
            raise UserError(
                f"{source}: found {new!r} as class {number} of {label!r}, where {path} has "
                f"{old!r}, expected the same numbers; give the label another name, or write to "
                "another folder"
            )


def _new(names: Sequence[str], known: Sequence[str]) -> list[str]:
    listed = set(known)
    return [name for name in dict.fromkeys(names) if name not in listed]


def _malformed(path: Path, found: str) -> UserError:
    return UserError(
        f"{path}: found {found}, expected the classes' names in the order of their numbers, "
        '{"<label>": ["name of class 0", "name of class 1", ...]}; correct it, or remove it to '
        "number the classes anew"
    )


def _unwritable(
    path: Path,
    classes: Mapping[str, Sequence[str]],
    known: Mapping[str, Sequence[str]],
    error: OSError,
) -> UserError:
    label, names = next(
        (label, new)
        for label, names in classes.items()
        if (new := _new(names, known.get(label, ())))
    )
    return UserError(
        f"{path}: found that the numbers of {len(names)} classes of {label!r} (the first: "
        f"{names[0]!r}) have to be written there, and cannot be ({error.strerror}), expected a "
        "folder that can be written to; open its manifests once, all of them, from an account "
        "and a machine that can write there"
    )
