"""Reads a config: a JSON file, `--set` options, then all checks."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import to_jsonable_python

from vjepa_fast.config.checks import check_config
from vjepa_fast.config.fields import Section, show
from vjepa_fast.config.messages import (
    RENAMED,
    RENAMED_VALUES,
    field_key,
    fields_of,
    key_name,
    sentence,
    unknown_key,
)
from vjepa_fast.config.schema import Config
from vjepa_fast.errors import UserError


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a JSON file, apply overrides in order, and check the whole.

    Args:
        path: the JSON file.
        overrides: `key.path=value` each, as `--set` takes them.

    Raises:
        UserError: one sentence with the key, what was found, what was expected and the fix.
    """
    return parse_config(read_overridden(path, overrides))


def read_overridden(
    path: str | Path, overrides: Sequence[str], root: type[Section] = Config
) -> dict[str, Any]:
    """The JSON object in a file with overrides applied in order; it is not checked yet.

    Args:
        path: the JSON file.
        overrides: `key.path=value` each.
        root: the whole config's section.

    Raises:
        UserError: see `read_json_object` and `apply_override`.
    """
    data = read_json_object(path)
    for override in overrides:
        apply_override(data, override, root)
    return data


def parse_config(data: Any) -> Config:
    """Check a config that is given as plain data. Every config passes through here.

    Args:
        data: a JSON object; keys that are missing take their defaults.

    Raises:
        UserError: one sentence with the key, what was found, what was expected and the fix.
    """
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        raise sentence(error) from None
    check_config(config)
    return config


def translate_stored(data: dict[str, Any]) -> dict[str, Any]:
    """Copy a config that a run stored with its checkpoints, in the names of this version.

    Args:
        data: the config as an older version, or this one, wrote it. Sections may be missing. Of a
            fine-tuning, its encoder and its clips are kept.
    """
    data = copy.deepcopy(data)
    if "classifier" in data:
        data = _of_finetuning(data)
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


def _of_finetuning(data: dict[str, Any]) -> dict[str, Any]:
    """The config of a pretraining that has the encoder and the clips of a fine-tuning's run."""
    of_clips = ("num_frames", "frame_step", "fps", "crop_size", "area", "aspect_ratio", "flip")
    clips = {key: data["data"][key] for key in of_clips}
    return {
        "output": data["output"],
        "seed": data["seed"],
        "data": {"manifests": [data["data"]["train"]], **clips},
        "model": data["model"],
        "masks": {"specs": [{"strategy": "random_tokens", "ratio": 0.5}]},  # fits any grid
    }


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises UserError for a repeated key, whose first value would be lost."""
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise UserError(f"{key}: found twice in the same object, expected once; remove one")
        result[key] = value
    return result


def _parse_json(text: str) -> Any:
    """JSON text as plain data. NaN and Infinity pass; the typed config rejects them by key."""
    return json.loads(text, object_pairs_hook=_object)


def read_json_object(path: str | Path) -> dict[str, Any]:
    """Read the JSON object in a file.

    Raises:
        UserError: no such file, or bad JSON (with line and column).
    """
    path = Path(path)
    try:
        value = _parse_json(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(
            f"{path}: found no such file, expected a JSON config; check the path, or start from a "
            "copy of one in configs/"
        ) from None
    except OSError as error:
        raise UserError(
            f"{path}: found an unreadable file ({error.strerror}), expected a JSON config; give a "
            "readable file"
        ) from None
    except json.JSONDecodeError as error:
        problem = error.msg[:1].lower() + error.msg[1:]
        raise UserError(
            f"{path}, line {error.lineno}, column {error.colno}: found bad JSON ({problem}), "
            "expected plain JSON (keys and strings in double quotes, no comments, no trailing "
            "commas); correct that line"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: found a file that is not JSON text ({error}), expected a JSON config in "
            "UTF-8; give another file"
        ) from None
    if not isinstance(value, dict):
        raise UserError(
            f'{path}: found {show(value)}, expected one JSON object; write {{"optim": {{…}}, …}}'
        )
    return value


def apply_override(data: dict[str, Any], override: str, root: type[Section] = Config) -> None:
    """Set one `key.path=value` in `data`.

    The value is JSON where it parses as JSON, else a string. An item of a list that `data`
    leaves out (`masks.specs[1].max_keep`) is set in a copy of the default list. `root` is the whole
    config's type.

    Raises:
        UserError: the config has no such key; the sentence names the nearest one.
    """
    path, equals, text = override.partition("=")
    path = path.strip()
    if not equals or not path:
        raise UserError(
            f"--set: found {show(override)}, expected key=value; write e.g. --set optim.lr=1e-4"
        )
    parts = [int(p) if p.isdecimal() else p for p in re.split(r"[.\[\]]+", path.rstrip("]"))]
    try:
        value = _parse_json(text)
    except (ValueError, RecursionError):
        value = text

    node, fields = data, fields_of(root)
    for depth, part in enumerate(parts):
        here, parent = parts[: depth + 1], key_name(parts[:depth])
        if isinstance(part, int):
            if not isinstance(node, list) or part >= len(node):
                raise UserError(
                    f"{key_name(here)}: found no such item, expected an index into the list "
                    f"{parent}; set {parent} as a whole"
                )
        elif field_key(here) not in fields:
            raise unknown_key(parts, root)
        elif not isinstance(node, dict):
            raise UserError(
                f"{parent}: found {show(node)}, expected an object to set {part} in; set {parent} "
                "as a whole"
            )
        if depth == len(parts) - 1:
            node[part] = value
            return
        if isinstance(node, dict) and part not in node:
            default = fields[field_key(here)].get_default(call_default_factory=True)
            is_list = isinstance(default, list | tuple)
            node[part] = to_jsonable_python(default) if is_list else {}
        node = node[part]
