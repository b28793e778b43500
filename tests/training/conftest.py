"""A fixture of the training tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from vjepa_fast.config import Config, load_config


@pytest.fixture
def configured(small_config: Callable[..., dict], tmp_path: Path) -> Callable[..., Config]:
    """Makes a checked config; keyword arguments as for `small_config`."""

    def make(**changes: dict) -> Config:
        path = tmp_path / "config.json"
        path.write_text(json.dumps(small_config(**changes)))
        return load_config(path)

    return make
