"""Mistakes in a config as one sentence: the key, what was found, what was expected, what to do."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from vjepa_fast.config.fields import FieldError, Section, show
from vjepa_fast.config.schema import Config
from vjepa_fast.errors import UserError

Location = Sequence[str | int]

# Keys and values that had another name in older versions.
RENAMED = {
    "optim.momentum": "teacher.momentum",
    "optim.max_bad_steps": "optim.max_nonfinite_steps",
    "data.num_threads": "data.num_workers",
    "data.max_bad_share": "data.max_bad_fraction",
    "log.monitor_every": "log.collapse_every",
}
RENAMED_VALUES = {
    "data.short_videos": {"edge": "repeat_last", "loop": "wrap", "refuse": "drop"},
}


def _sections_in(annotation: Any) -> list[type[Section]]:
    """The sections that a field may hold, alone or as the items of a list."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for inner in get_args(annotation) for section in _sections_in(inner)]


def _fields(section: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in section.model_fields.items():
        key = f"{prefix}{name}"
        yield key, field
        inner = _sections_in(field.annotation)
        items = key if inner[:1] == [field.annotation] else f"{key}[]"
        for choice in inner:
            yield from _fields(choice, f"{items}.")
            if len(inner) > 1:
                yield from _fields(choice, f"{items}.{choice.__name__}.")


@cache
def fields_of(root: type[Section]) -> dict[str, FieldInfo]:
    """Every key of a config with its field.

    Below a list that may hold several kinds of sections, each key is listed twice: as users write
    it, and with the kind's name in it, as pydantic reports it.
    """
    return dict(_fields(root))


@cache
def _kinds(root: type[Section]) -> set[str]:
    return {part for key in fields_of(root) for part in key.split(".") if part[0].isupper()}


def key_name(location: Location) -> str:
    """`("masks", "specs", 0, "max_keep")` as `masks.specs[0].max_keep`."""
    name = ""
    for part in location:
        name += f"[{part}]" if isinstance(part, int) else f".{part}" if name else part
    return name or "the config"


def field_key(location: Location) -> str:
    """The key in `fields_of` of a location, `masks.specs[].max_keep`."""
    return re.sub(r"\[\d+\]", "[]", key_name(location))


def _as_written(location: Location, root: type[Section]) -> tuple[str | int, ...]:
    """A location of pydantic's as the user wrote it."""
    return tuple(part for part in location if part not in _kinds(root))


def unknown_key(location: Location, root: type[Section] = Config) -> UserError:
    """The error for a key that the config does not have. It names the nearest key that exists.

    Args:
        location: the path of the key, with or without the kinds of sections that pydantic names.
        root: the whole config's type.
    """
    fields = fields_of(root)
    written = _as_written(location, root)
    key = key_name(written)
    if RENAMED.get(key) in fields:
        return UserError(
            f"{key}: found a key of an older version, expected {RENAMED[key]}; rename it"
        )
    section = f"{field_key(location[:-1])}." if len(location) > 1 else ""
    siblings = [
        name.removeprefix(section)
        for name in fields
        if name.startswith(section) and not re.search(r"[.\[]", name.removeprefix(section))
    ]
    kinds = _kinds(root)
    keys = [name.replace("[]", "[0]") for name in fields if not kinds & {*name.split(".")}]
    near = difflib.get_close_matches(str(location[-1]), siblings, n=1)
    nearest = [key_name((*written[:-1], name)) for name in near]
    nearest += [name for name in keys if name.rpartition(".")[2] == location[-1]]
    if not siblings:
        nearest += difflib.get_close_matches(key, keys, n=1)
    expected = f"one of {', '.join(siblings)}" if siblings else "a key of the config"
    fix = f"did you mean {nearest[0]}?" if nearest else "use one of those, or remove it"
    if field_key(written) in fields:  # a key of another kind of section
        fix = 'set "strategy" to one that has this key, or remove it'
    return UserError(f"{key}: found an unknown key, expected {expected}; {fix}")


_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "a string in quotes",
    "string_unicode": "a string in UTF-8",
    "list_type": "a list in brackets",
    "model_type": "an object in braces",
    "model_attributes_type": "an object in braces",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number of at most {le}",
    "too_short": "at least {min_length} item",
    "string_too_short": "a string that is not empty",
    "literal_error": "{expected}",
}


def _example(field: FieldInfo | None) -> Any:
    if field is None:
        return PydanticUndefined
    if field.examples:
        return field.examples[0]
    return field.get_default(call_default_factory=True)


def _choices(annotation: Any) -> list[str]:
    """The strings that a Literal allows, also where null is allowed beside it."""
    if isinstance(annotation, str):
        return [annotation]
    return [text for inner in get_args(annotation) for text in _choices(inner)]


def _nearest_choice(found: Any, choices: Sequence[str]) -> str:
    return (difflib.get_close_matches(str(found), choices, n=1) or [choices[0]])[0]


def _fix(kind: str, found: Any, key: str, is_item: bool, root: type[Section]) -> str:
    """What to write instead of a value.

    Args:
        kind: pydantic's name of the mistake.
        found: the value.
        key: its key in `fields_of`.
        is_item: whether the value is one item of the field's list.
        root: the whole config's type.
    """
    field = fields_of(root).get(key)
    if kind in ("int_type", "int_from_float") and isinstance(found, float) and math.isfinite(found):
        return f"write {round(found)}"
    if isinstance(found, str) and kind.startswith(("int", "float", "bool")):
        try:
            return f"write {show(json.loads(found.lower()))} without quotes"
        except ValueError:
            pass
    if kind == "literal_error" and field is not None:
        renamed = RENAMED_VALUES.get(key, {})
        if isinstance(found, str) and found in renamed:
            return f"write {show(renamed[found])}, its name in this version"
        return f"write e.g. {show(_nearest_choice(found, _choices(field.annotation)))}"
    example = _example(field)
    if isinstance(example, BaseModel | type(PydanticUndefined)):
        section = next(iter(_sections_in(field.annotation)), root) if field else root
        return f'write {{"{next(iter(section.model_fields))}": …}}'
    if is_item and isinstance(example, list | tuple):
        return f"write the whole list, e.g. {show(example)}"
    return f"write e.g. {show(example)}"


def sentence(error: ValidationError, root: type[Section] = Config) -> UserError:
    """The first mistake that pydantic found in a config of this type, as one sentence.

    Unknown keys come first: a misspelt key also shows as a missing one, which would mislead.
    """
    mistakes = error.errors(include_url=False)
    mistake = next((m for m in mistakes if m["type"] == "extra_forbidden"), mistakes[0])
    kind, location, found = mistake["type"], mistake["loc"], mistake["input"]
    if kind == "extra_forbidden":
        return unknown_key(location, root)
    written = _as_written(location, root)
    is_item = bool(written) and isinstance(written[-1], int)
    if kind == "value_error":
        reason = mistake["ctx"]["error"]
        if isinstance(reason, FieldError):
            written = (*written, reason.key)
        return UserError(f"{key_name(written)}: {reason}")
    key = field_key(written[:-1] if is_item else written)
    field = fields_of(root).get(key)
    if kind == "missing":
        example = _example(field)
        is_section = field is not None and _sections_in(field.annotation)
        text = "{…}" if is_section and example is PydanticUndefined else show(example)
        return UserError(
            f"{key_name(written)}: found nothing, expected this key; add it, e.g. "
            f'"{location[-1]}": {text}'
        )
    limits = {
        name: f"{limit:g}" if isinstance(limit, float) else limit
        for name, limit in mistake.get("ctx", {}).items()
    }
    expected = _EXPECTED.get(kind, mistake["msg"]).format(**limits)
    if field is not None and type(None) in get_args(field.annotation):
        expected += " or null"
    fix = _fix(kind, found, key, is_item, root)
    return UserError(f"{key_name(written)}: found {show(found)}, expected {expected}; {fix}")
