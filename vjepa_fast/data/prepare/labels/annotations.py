"""Annotation files of data sets as they are distributed, each told by its content."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from vjepa_fast.data.manifest.replaced import TEXT_READ
from vjepa_fast.data.prepare.listing.names import is_named_as_video
from vjepa_fast.data.prepare.text_list import name_and_label
from vjepa_fast.errors import UserError

_KINETICS = {"youtube_id", "time_start", "time_end"}
# Columns of other CSV files with a header, in the order of preference.
_NAMES = ("path", "video", "video_id", "vid_name", "video_name", "filename", "file_name", "id")
_LABELS = ("label", "class", "category")
_FORMATS = (
    "a Kinetics CSV or JSON file, a Something-Something JSON file or its labels.json, a "
    'Diving-48 JSON file, lines "id;label", or lines of a path and a label'
)


@dataclass(frozen=True, slots=True)
class Annotation:
    """The class of one video.

    Attributes:
        names: names that its file may have, without suffixes; with the folders that it lies in
            where the annotation tells.
        label: the class, as it is written.
    """

    names: tuple[str, ...]
    label: str


@dataclass
class AnnotationFile:
    """What one file says.

    Attributes:
        path: of the file.
        kind: its format, in words.
        annotations: of the videos that have a label.
        unlabeled: how many others it lists.
        classes: the names of the classes in the order of their numbers, if that is what it holds.
    """

    path: Path
    kind: str
    annotations: list[Annotation] = field(default_factory=list)
    unlabeled: int = 0
    classes: list[str] | None = None


def read_annotations(path: Path) -> AnnotationFile:
    """Read a file of a known format.

    Raises:
        UserError: there is no such file, its format is not known, or a row of it is malformed.
    """
    try:
        text = path.read_text(encoding=TEXT_READ["encoding"], errors=TEXT_READ["errors"])
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise UserError(f"{path}: found no file, expected {_FORMATS}; correct the path") from None
    except OSError as error:
        raise UserError(
            f"{path}: found a file that cannot be read ({error.strerror}), expected {_FORMATS}; "
            "make it readable, or give a copy"
        ) from None
    if text.lstrip()[:1] not in ("{", "["):
        try:
            return _table(path, text)
        except csv.Error as error:  # such as a quote that is never closed
            raise _unknown(path, f"a file unreadable as CSV ({error})") from None
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise _unknown(path, f"a file unreadable as JSON ({error})") from None
    return _object(path, found) if isinstance(found, dict) else _list(path, found)


def stem(name: str) -> str:
    """The path of a video without suffixes of videos and images, also where a copy has several."""
    while is_named_as_video(name):
        name = name[: name.rindex(".")]
    return name


def _object(path: Path, found: Mapping[str, Any]) -> AnnotationFile:
    values = list(found.values())
    if values and all(isinstance(value, dict) and _is_annotated(value) for value in values):
        rows = (_kinetics_row(path, name, value) for name, value in found.items())
        return _file(path, "Kinetics JSON", rows)
    if values and all(type(value) is int or str(value).isdecimal() for value in values):
        names = sorted(found, key=lambda name: int(found[name]))
        numbers = [int(found[name]) for name in names]
        if numbers != list(range(len(numbers))):
            raise UserError(
                f"{path}: found the numbers {_some(numbers)} of classes, expected 0, 1, ... each "
                "once; correct it"
            )
        return AnnotationFile(path, "numbers of classes", classes=names)
    raise _unknown(path, f"a JSON object with the keys {_some(found)}")


def _kinetics_row(
    path: Path, video: str, value: Mapping[str, Any]
) -> tuple[tuple[str, ...], str | None]:
    """Names and label; a test split has no annotations, or empty ones."""
    row = value.get("annotations") or {}
    times = (row.get("segment") or []) if isinstance(row, dict) else None
    if not isinstance(times, list) or len(times) not in (0, 2):
        raise UserError(
            f"{path}: found the annotations {str(row)[:80]} of video {video}, expected "
            '{"label": "…", "segment": [seconds, seconds]}; correct it'
        )
    return _clip_names(path, video, *times), row.get("label")


def _is_annotated(value: Mapping[str, Any]) -> bool:
    return "subset" in value or isinstance(value.get("annotations"), dict)


def _list(path: Path, found: Sequence[Any]) -> AnnotationFile:
    keys = set(found[0]) if found and isinstance(found[0], dict) else set()
    if {"vid_name", "label"} <= keys:
        kind, name, label = "Diving-48 JSON", "vid_name", "label"
    elif {"id", "template"} <= keys or keys == {"id"}:  # its test.json has no more
        kind, name, label = "Something-Something JSON", "id", "template"
    else:
        words = f"objects with the keys {_some(sorted(keys))}" if keys else "something else"
        raise _unknown(path, f"a JSON list of {words}")
    rows = []
    for i, row in enumerate(found):
        if not isinstance(row, dict) or not row.get(name, ""):
            raise UserError(
                f"{path}: found no {name!r} in entry {i}, expected it in each; correct it"
            )
        value = row.get(label)
        text = "" if value is None else str(value)
        text = text.replace("[", "").replace("]", "") if label == "template" else text
        rows.append(((stem(str(row[name])),), text))
    return _file(path, kind, rows)


def _table(path: Path, text: str) -> AnnotationFile:
    lines = [line for line in text.split("\n") if line.strip()]  # read_text has made \r\n one
    if not lines or "\0" in text:
        raise _unknown(path, "a file that isn't text" if lines else "an empty file")
    header = [cell.strip() for cell in next(csv.reader(lines[:1]))]
    if set(header) >= _KINETICS:
        rows = csv.DictReader(lines, header, restval="", strict=True)
        next(rows)
        return _file(
            path,
            "Kinetics CSV",
            (
                (
                    _clip_names(path, row["youtube_id"], row["time_start"], row["time_end"]),
                    row.get("label"),
                )
                for row in rows
            ),
        )
    name = next((column for column in _NAMES if column in header), None)
    label = next((column for column in _LABELS if column in header), None)
    if name and label:
        rows = csv.DictReader(lines, header, restval="", strict=True)
        next(rows)
        kind = f"CSV with the columns {name} and {label}"
        return _file(path, kind, (((stem(row[name].strip()),), row[label]) for row in rows))
    for delimiter, kind in ((";", "lines id;label"), ("\t", "two columns"), (",", "two columns")):
        with suppress(csv.Error):  # a quote that is never closed, which would hide other lines
            pairs = list(csv.reader(lines, delimiter=delimiter, strict=True))
            if all(len(pair) == 2 and pair[0].strip() for pair in pairs):
                return _pairs(path, kind, pairs)
    try:
        pairs = [name_and_label(line.strip(), str(path)) for line in lines]
    except UserError:
        raise _unknown(path, f"a text whose first line is {lines[0][:80]!r}") from None
    return _pairs(path, "lines path label", pairs)


def _pairs(path: Path, kind: str, pairs: Sequence[Sequence[str]]) -> AnnotationFile:
    """Names and labels, perhaps with a header."""
    has_header = pairs[0][0].strip() in _NAMES and pairs[0][1].strip() in _LABELS
    rows = (((stem(name.strip()),), label) for name, label in pairs[has_header:])
    return _file(path, kind, rows)


def _file(
    path: Path, kind: str, rows: Iterable[tuple[tuple[str, ...], str | None]]
) -> AnnotationFile:
    found = AnnotationFile(path, kind)
    for names, label in rows:
        if label is None or not str(label).strip():
            found.unlabeled += 1
        else:
            found.annotations.append(Annotation(names, str(label).strip()))
    if not found.annotations:
        raise UserError(
            f"{path}: found a file of the format {kind} without any label, as that of a test split "
            "may be, expected labels; give the file that has them"
        )
    return found


def _clip_names(path: Path, video: str, *times: Any) -> tuple[str, ...]:
    """The names of a clip of a YouTube video: with its times in whole seconds, or without."""
    try:
        seconds = [f"_{int(float(time)):06d}" for time in times]
    except (TypeError, ValueError, OverflowError):
        raise UserError(
            f"{path}: found the times {times[0]!r} and {times[-1]!r} of video {video}, expected "
            "seconds; correct it"
        ) from None
    return (video + "".join(seconds), video) if seconds else (video,)


def _some(words: Sequence[Any] | Mapping[str, Any]) -> str:
    shown = [str(word)[:30] for word in islice(iter(words), 5)]
    return ", ".join(chain(shown, ["..."] if len(words) > len(shown) else []))


def _unknown(path: Path, found: str) -> UserError:
    return UserError(f"{path}: found {found}, expected {_FORMATS}; convert it to one of them")
