"""What the user wrote (a JSON file, `--set` options) as plain data; its mistakes as a sentence."""

import copy
import difflib
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from vjepa_fast.errors import UserError

Location = Sequence[str | int]

# Keys and values of older versions, and their names in this one.
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


def translate_stored(data: dict[str, Any]) -> dict[str, Any]:
    """A copy of a config that a run stored with its checkpoints, in the names of this version.

    Args:
        data: the config as an older version, or this one, wrote it; sections may be missing.
    """
    data = copy.deepcopy(data)
    for old, new in RENAMED.items():
        section, key = old.split(".")
        if key in data.get(section, {}):
            value = data[section].pop(key)
            section, key = new.split(".")
            data.setdefault(section, {})[key] = value
    for name, values in RENAMED_VALUES.items():
        section, key = name.split(".")
        if key in data.get(section, {}):
            data[section][key] = values.get(data[section][key], data[section][key])
    return data


def show(value: Any) -> str:
    """A value as the user would write it in JSON, cut to a readable length."""
    text = json.dumps(value, default=repr)
    return text if len(text) <= 60 else text[:57] + "..."


def key_name(location: Location) -> str:
    """`("masks", "specs", 0, "max_keep")` as `masks.specs[0].max_keep`."""
    name = ""
    for part in location:
        name += f"[{part}]" if isinstance(part, int) else f".{part}" if name else part
    return name or "the config"


class _Repeated:
    """Stands where a key was given twice, until the walk that knows its full name finds it."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        result[key] = _Repeated() if key in result else value
    return result


def _refuse_repeated(value: Any, location: tuple[str | int, ...]) -> None:
    if isinstance(value, _Repeated):
        raise UserError(
            f"{key_name(location)}: found twice in the same object, expected once; remove one"
        )
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, item in items:
        _refuse_repeated(item, (*location, key))


def parse_json(text: str, location: tuple[str | int, ...] = ()) -> Any:
    """JSON text as plain data; `location` is where it belongs in the config.

    NaN and Infinity pass here; the typed config refuses them by their key. Raises ValueError
    (json.JSONDecodeError for bad syntax), or UserError for a key given twice.
    """
    value = json.loads(text, object_pairs_hook=_object)
    _refuse_repeated(value, location)
    return value


def read_json_object(path: str | Path) -> dict[str, Any]:
    """The JSON object in a file. Raises UserError, with line and column for bad syntax."""
    path = Path(path)
    try:
        value = parse_json(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(
            f"{path}: found no such file, expected a JSON config; check the path, or start from a "
            "copy of one in configs/"
        ) from None
    except OSError as error:
        raise UserError(
            f"{path}: found something unreadable ({error.strerror}), expected a JSON config; give "
            "a readable file"
        ) from None
    except json.JSONDecodeError as error:
        problem = error.msg[:1].lower() + error.msg[1:]
        raise UserError(
            f"{path}, line {error.lineno}, column {error.colno}: found bad JSON ({problem}), "
            "expected plain JSON (keys and texts in double quotes, no comments, no trailing "
            "commas); correct that line"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: found something that is not JSON text ({error}), expected a JSON config in "
            "UTF-8; give another file"
        ) from None
    if not isinstance(value, dict):
        raise UserError(
            f'{path}: found {show(value)}, expected one JSON object; write {{"optim": {{…}}, …}}'
        )
    return value


# -------------------------------------------------------------------------------------------- keys


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models that a field may hold, alone or as the items of a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models_in(inner)]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The first of them."""
    return next(iter(_models_in(annotation)), None)


def _keys(model: type[BaseModel], prefix: tuple[str | int, ...] = ()) -> Iterator[tuple]:
    for name, field in model.model_fields.items():
        yield (*prefix, name)
        inner = _model_in(field.annotation)
        if inner is not None:
            item = () if inner is field.annotation else (0,)
            yield from _keys(inner, (*prefix, name, *item))


def _walk(root: type[BaseModel], location: Location) -> tuple[FieldInfo | None, list]:
    """The field at a location, and the models that it may hold. Where there is a choice of models,
    pydantic puts the name of the one that it took into the location."""
    models: list[type[BaseModel]] = [root]
    field = None
    for part in location:
        if isinstance(part, int):
            continue
        chosen = [model for model in models if model.__name__ == part]
        if chosen:
            models = chosen
            continue
        field = next((m.model_fields[part] for m in models if part in m.model_fields), None)
        models = [] if field is None else _models_in(field.annotation)
    return field, models


def _field_at(root: type[BaseModel], location: Location) -> FieldInfo | None:
    return _walk(root, location)[0]


def _without_models(root: type[BaseModel], location: Location) -> tuple[str | int, ...]:
    """A location without the names of models that pydantic put in."""
    plain = []
    for end, part in enumerate(location):
        names = [model.__name__ for model in _walk(root, location[:end])[1]]
        if part not in names:
            plain.append(part)
    return tuple(plain)


def unknown_key(root: type[BaseModel], location: Location) -> UserError:
    """The error for a key that the config does not have, naming the nearest one that it has."""
    siblings = list(
        dict.fromkeys(
            name for model in _walk(root, location[:-1])[1] for name in model.model_fields
        )
    )
    location = _without_models(root, location)
    key, prefix = key_name(location), location[:-1]
    if key in RENAMED:
        return UserError(
            f"{key}: found a key of an older version, expected {RENAMED[key]}; rename it"
        )
    keys = list(_keys(root))
    same_name = [key_name(known) for known in keys if known[-1] == location[-1]]
    near = difflib.get_close_matches(str(location[-1]), siblings, n=1)
    nearest = [key_name((*prefix, name)) for name in near] + same_name
    if not siblings:
        nearest += difflib.get_close_matches(key, map(key_name, keys), n=1)
    expected = f"one of {', '.join(siblings)}" if siblings else "a key of the config"
    fix = f"did you mean {nearest[0]}?" if nearest else "use one of those, or remove it"
    return UserError(f"{key}: found an unknown key, expected {expected}; {fix}")


def apply_override(root: type[BaseModel], data: dict[str, Any], override: str) -> None:
    """Sets one `key.path=value` in `data`; the value is JSON where it parses as JSON, else a text.

    Raises UserError for a path that the config does not have, naming the nearest one that it has.
    """
    path, equals, text = override.partition("=")
    path = path.strip()
    if not equals or not path:
        raise UserError(
            f"--set: found {show(override)}, expected key=value; write e.g. --set optim.lr=1e-4"
        )
    parts = [int(p) if p.isdecimal() else p for p in re.split(r"[.\[\]]+", path.rstrip("]"))]
    try:
        value = parse_json(text, tuple(parts))
    except (ValueError, RecursionError):
        value = text

    node: Any = data
    for depth, part in enumerate(parts):
        here, parent = parts[: depth + 1], key_name(parts[:depth])
        if isinstance(part, int):
            if not isinstance(node, list) or part >= len(node):
                raise UserError(
                    f"{key_name(here)}: found no such item, expected an index into the list "
                    f"{parent}; set {parent} as a whole"
                )
        elif _field_at(root, here) is None:
            raise unknown_key(root, parts)
        elif not isinstance(node, dict):
            raise UserError(
                f"{parent}: found {show(node)}, expected an object to set {part} in; set {parent} "
                "as a whole"
            )
        if depth == len(parts) - 1:
            node[part] = value
        elif isinstance(node, dict):
            node = node.setdefault(part, {})
        else:
            node = node[part]


# --------------------------------------------------------------------------------------- sentences

_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "a text in quotes",
    "list_type": "a list in brackets",
    "model_type": "an object in braces",
    "model_attributes_type": "an object in braces",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number of at most {le}",
    "too_short": "at least {min_length} item",
    "string_too_short": "a text that is not empty",
    "literal_error": "{expected}",
}


def _example(field: FieldInfo | None) -> Any:
    if field is None:
        return PydanticUndefined
    if field.examples:
        return field.examples[0]
    return field.get_default(call_default_factory=True)


def _choices(annotation: Any) -> list[str]:
    """The texts that a Literal allows, also where null is allowed beside it."""
    if isinstance(annotation, str):
        return [annotation]
    return [text for inner in get_args(annotation) for text in _choices(inner)]


def _nearest_choice(found: Any, choices: Sequence[str]) -> str:
    return (difflib.get_close_matches(str(found), choices, n=1) or [choices[0]])[0]


def _fix(kind: str, found: Any, field: FieldInfo | None, inside: bool) -> str:
    """What to write instead. `inside`: the value is one item of the field's list."""
    if kind in ("int_type", "int_from_float") and isinstance(found, float) and math.isfinite(found):
        return f"write {round(found)}"
    if isinstance(found, str) and kind.startswith(("int", "float", "bool")):
        try:
            return f"write {show(json.loads(found.lower()))} without quotes"
        except ValueError:
            pass
    if kind == "literal_error" and field is not None:
        for values in RENAMED_VALUES.values():
            if isinstance(found, str) and found in values:
                return f"write {show(values[found])}, its name in this version"
        return f"write e.g. {show(_nearest_choice(found, _choices(field.annotation)))}"
    example = _example(field)
    if field is not None and isinstance(example, BaseModel | type(PydanticUndefined)):
        section = _model_in(field.annotation)
        name = next(iter(section.model_fields)) if section else "…"
        return f'write {{"{name}": …}}'
    if inside and isinstance(example, list | tuple):
        return f"write the whole list, e.g. {show(example)}"
    return f"write e.g. {show(example)}"


def sentence(error: ValidationError, root: type[BaseModel]) -> UserError:
    """The first mistake that pydantic found, as one sentence with the key and the fix.

    Unknown keys come first: a misspelt key also shows as a missing one, which would mislead.
    """
    mistakes = error.errors(include_url=False)
    mistake = next((m for m in mistakes if m["type"] == "extra_forbidden"), mistakes[0])
    kind, location, found = mistake["type"], mistake["loc"], mistake["input"]
    place = _without_models(root, location)
    key = key_name(place)
    if kind == "extra_forbidden":
        return unknown_key(root, location)
    field = _field_at(root, location)
    if kind == "value_error":
        return UserError(f"{key}: {mistake['ctx']['error']}")
    if kind == "missing":
        example = _example(field)
        inner = _model_in(field.annotation) if field else None
        text = "{…}" if inner is not None and example is PydanticUndefined else show(example)
        return UserError(
            f'{key}: found nothing, expected this key; add it, e.g. "{location[-1]}": {text}'
        )
    limits = {
        name: f"{limit:g}" if isinstance(limit, float) else limit
        for name, limit in mistake.get("ctx", {}).items()
    }
    expected = _EXPECTED.get(kind, mistake["msg"]).format(**limits)
    if field is not None and type(None) in get_args(field.annotation):
        expected += " or null"
    fix = _fix(kind, found, field, inside=bool(place) and isinstance(place[-1], int))
    return UserError(f"{key}: found {show(found)}, expected {expected}; {fix}")
