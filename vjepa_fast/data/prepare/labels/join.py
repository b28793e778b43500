"""Joining annotation files to the videos of a manifest (`vjepa-fast labels`)."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vjepa_fast.data.manifest.class_map import add_classes, check_classes
from vjepa_fast.data.manifest.entries import Entries
from vjepa_fast.data.manifest.files import read_manifest, write_manifest
from vjepa_fast.data.manifest.labels import are_integers
from vjepa_fast.data.prepare.labels.annotations import (
    Annotation,
    AnnotationFile,
    read_annotations,
    stem,
)
from vjepa_fast.errors import UserError

_SHOWN = 3


@dataclass(frozen=True)
class Joined:
    """What became of the videos and of the annotations.

    Attributes:
        files: the annotation files.
        videos: how many were labeled.
        classes: how many classes these have.
        unlabeled: the videos without an annotation, which are left out.
        unused: the annotations without a video.
    """

    files: list[AnnotationFile]
    videos: int
    classes: int
    unlabeled: list[str]
    unused: list[Annotation]


def join_labels(
    manifest: Path, annotations: Sequence[Path], output: Path, label: str = "class"
) -> Joined:
    """Write the manifest of the videos that have an annotation, with its class as a label.

    A video belongs to an annotation by its file's name without the suffix. Of a path in an
    annotation the folders have to agree too, as far as they are not the same in its whole file.
    Names of classes are numbered in `classes.json` beside the output; integers stay.

    Raises:
        UserError: a file is malformed, no video has an annotation, one has annotations of two
            classes, two have one annotation, the label exists already, or the output cannot be
            written or is one of the inputs.
    """
    if os.path.realpath(manifest) == os.path.realpath(output):
        raise UserError(
            f"--output: found {output}, the manifest itself, expected another file, since videos "
            "without an annotation are left out; name one beside it"
        )
    if os.path.realpath(output) in map(os.path.realpath, annotations):
        raise UserError(
            f"--output: found {output}, which is one of the annotation files, expected another "
            "file, since it would be lost; name another"
        )
    if output.suffix not in (".csv", ".parquet"):
        raise UserError(
            f"--output: found {output}, expected a name that ends in .csv or .parquet; rename it"
        )
    files = [read_annotations(path) for path in annotations]
    if all(file.classes is not None for file in files):
        raise UserError(
            f"{annotations[0]}: found only numbers of classes, expected annotations of videos "
            "beside them; give those files too"
        )
    entries = read_manifest(manifest)
    if label in entries.label_names:
        raise UserError(
            f"{manifest}: found a column label_{label} already, expected none of that name; "
            "choose another --name"
        )
    found, unused = _match(entries, files)
    labeled, missing = [], []
    try:
        numbers, names = _numbered(files, output.parent, label)
        for i, entry in enumerate(entries):
            if i in found:
                labels = entry.labels | {label: numbers[found[i]]}
                labeled.append(replace(entry, labels=labels))
            else:
                missing.append(entry.path)
        write_manifest(output, labeled, entries.class_names | names)
    except OSError as error:
        raise UserError(
            f"--output: found that {output} cannot be written ({error.strerror}), expected a path "
            "that you can write to; name another"
        ) from None
    return Joined(files, len(labeled), len(set(found.values())), missing, unused)


def _match(
    entries: Entries, files: Sequence[AnnotationFile]
) -> tuple[dict[int, str], list[Annotation]]:
    """The class of each video that has one, by its row; the annotations that no video has."""
    by_stem: dict[str, list[tuple[list[str], Annotation]]] = defaultdict(list)
    for file in files:
        if file.classes is not None:
            continue
        shared = _shared_folders(file.annotations)
        for annotation in file.annotations:
            for name in annotation.names:
                *folders, last = name.split("/")
                by_stem[last].append((folders[shared:], annotation))
    found: dict[int, str] = {}
    owners: dict[int, str] = {}  # by the annotation's identity
    for i, entry in enumerate(entries):
        *folders, last = entry.path.replace(".tar::", ".tar/").split("/")
        own = [
            annotation
            for expected, annotation in by_stem.get(stem(last), ())
            if not expected or folders[-len(expected) :] == expected
        ]
        if not own:
            continue
        found[i] = own[0].label
        if other := next((a.label for a in own if a.label != found[i]), None):
            raise UserError(
                f"{entry.path}: found annotations of two classes, {found[i]!r} and {other!r}, "
                "expected one class for a video; give the file of one data set or split"
            )
        for annotation in own:
            if owners.setdefault(id(annotation), entry.path) != entry.path:
                raise UserError(
                    f"found two videos, {owners[id(annotation)]} and {entry.path}, for the "
                    f"annotation {annotation.names[0]!r}, expected one; leave one out of the "
                    "manifest, or give annotations with folders"
                )
    everything = [annotation for file in files for annotation in file.annotations]
    unused = [annotation for annotation in everything if id(annotation) not in owners]
    if not found:
        raise UserError(
            f"{entries.source}: found none of its {len(entries)} videos (the first: "
            f"{entries[0].path}) among {len(everything)} annotations (the first: "
            f"{everything[0].names[0]!r}), expected file names as in the annotations; "
            "give the annotations of these videos"
        )
    return found, unused


def _shared_folders(annotations: Sequence[Annotation]) -> int:
    """How many folders all the paths of a file begin with: those of somebody's disk."""
    folders = [name.split("/")[:-1] for a in annotations for name in a.names]
    pairs = list(zip(min(folders), max(folders), strict=False))  # they differ first, if any do
    return next((i for i, (one, other) in enumerate(pairs) if one != other), len(pairs))


def _numbered(
    files: Sequence[AnnotationFile], folder: Path, label: str
) -> tuple[dict[str, int], dict[str, list[str]]]:
    """The number of each class as the annotations write it, and what `Entries.class_names` is
    then; the map of classes is written."""
    written = sorted({a.label for file in files for a in file.annotations})
    given = [file for file in files if file.classes is not None]
    if not given:
        if are_integers(written, " and ".join(str(file.path) for file in files)):
            return {text: int(text) for text in written}, {}
        spelled, names = {text: text for text in written}, written
    else:
        if len(given) > 1:
            raise UserError(
                f"{given[1].path}: found a second file of numbers of classes beside "
                f"{given[0].path}, expected one; leave one out"
            )
        names = given[0].classes
        official = {name.casefold(): name for name in names}
        if unknown := [text for text in written if text.casefold() not in official]:
            raise UserError(
                f"{given[0].path}: found no number for {len(unknown)} classes of the annotations "
                f"(the first: {unknown[0]!r}), expected one for each; give the file that belongs "
                "to them"
            )
        spelled = {text: official[text.casefold()] for text in written}
        check_classes(folder, label, names, str(given[0].path))
    folder.mkdir(parents=True, exist_ok=True)
    class_names = add_classes(folder, {label: names})
    known = {name: i for i, name in enumerate(class_names[label])}
    return {text: known[spelled[text]] for text in written}, class_names


def report_lines(joined: Joined, output: Path, label: str) -> list[str]:
    """What `vjepa-fast labels` prints."""
    lines = []
    for file in joined.files:
        if file.classes is not None:
            lines.append(f"{file.path}: {file.kind}, {len(file.classes)} classes")
            continue
        others = f", {file.unlabeled} without a label" if file.unlabeled else ""
        lines.append(f"{file.path}: {file.kind}, {len(file.annotations)} annotations{others}")
    unlabeled, unused = joined.unlabeled, [annotation.names[0] for annotation in joined.unused]
    for found, words in (
        (unlabeled, "videos without an annotation, left out"),
        (unused, "annotations without a video"),
    ):
        if found:
            shown = ", ".join(found[:_SHOWN]) + (", ..." if len(found) > _SHOWN else "")
            lines.append(f"{len(found):>8} {words}: {shown}")
    lines.append(f"{output}: {joined.videos} videos of {joined.classes} classes (label {label})")
    return lines
