"""What tests of studies share."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

PROBE = ["--labels", "digit", "--epochs", "1", "--batch", "64"]


@pytest.fixture
def described(small_config: Callable[..., dict], tmp_path: Path) -> Callable[..., dict]:
    """Makes the JSON data of a study whose runs take seconds; keyword arguments replace keys."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps(small_config(optim={"steps": 4})))

    def make(**changes: object) -> dict:
        study = {
            "title": "A title",
            "question": "What is asked?",
            "paper": "What is known.",
            "config": str(config),
            "set": ["log.every=2"],
            "variants": {"plain": [], "pixels": ["objective=pixels"]},
            "seeds": [0, 1],
            "probes": {"attentive": PROBE},
        }
        return study | changes

    return make
