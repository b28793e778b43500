"""Makes configs with a mistake, and checks the error message."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.paths import REPOSITORY
from vjepa_fast.config import load_config, parse_config
from vjepa_fast.errors import UserError

REMOVED = object()  # as a key's new value


def bad_config(changes: dict[str, object]) -> dict:
    """The data of configs/vith16.json, defaults included, with changes by dotted key."""
    data = load_config(REPOSITORY / "configs" / "vith16.json").model_dump(mode="json")
    for path, value in changes.items():
        *parents, last = (int(part) if part.isdigit() else part for part in path.split("."))
        node = data
        for part in parents:
            node = node[part]
        if value is REMOVED:
            del node[last]
        else:
            node[last] = value
    return data


def check_sentence(changes: dict[str, object], key: str, rest: str, folder: Path) -> None:
    """A file with these changes, and the same data in Python, give one sentence "key: rest …"."""
    data = bad_config(changes)
    (folder / "bad.json").write_text(json.dumps(data))
    with pytest.raises(UserError) as error:
        load_config(folder / "bad.json")
    sentence = str(error.value)
    assert sentence.startswith(f"{key}: {rest}")
    assert "\n" not in sentence
    with pytest.raises(UserError) as from_python:
        parse_config(data)
    assert str(from_python.value) == sentence
