"""A tiny run to start from, and a config of a fine-tuning that takes seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.trainers import SECOND
from vjepa_fast.config import parse_config
from vjepa_fast.training.loop import pretrain

OFF = {
    "randaugment": {"operations": 0},
    "color_jitter": 0.0,
    "erasing": 0.0,
    "mixup": 0.0,
    "cutmix": 0.0,
}


@pytest.fixture(scope="session")
def pretrained(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the second generation, of two steps."""
    data = {
        "output": str(tmp_path_factory.mktemp("pretrained") / "run"),
        "data": {
            "manifests": [str(demo / "train.csv")],
            "num_frames": 4,
            "frame_step": 2,
            "crop_size": 28,
            "num_workers": 1,
        },
        "model": SECOND
        | {
            "encoder": {"width": 24, "depth": 2, "heads": 2},
            "predictor": {"width": 12, "depth": 1, "heads": 2},
            "patch_size": 7,
        },
        "optim": {"steps": 2, "global_batch": 4, "micro_batch": 4, "warmup_steps": 0},
        "masks": {
            "specs": [{"num_blocks": 2, "spatial_scale": [0.3, 0.3]}],
            "truncate": "none",
        },
    }
    return pretrain(parse_config(data))


@pytest.fixture
def finetune_config(demo: Path, pretrained: Path, tmp_path: Path) -> Callable[..., dict]:
    """Makes the JSON data of a fine-tuning of 6 steps without augmentation; keyword arguments
    replace keys of whole sections, as optim={"lr": 1e-2}, or other keys."""

    def make(**changes: object) -> dict:
        config = {
            "output": str(tmp_path / "run"),
            "init": {"checkpoint": str(pretrained)},
            "label": "digit",
            "data": {
                "train": str(demo / "train.csv"),
                "test": str(demo / "test.csv"),
                "num_frames": 4,
                "frame_step": 2,
                "clips_per_video": 1,
                "crop_size": 28,
                "num_workers": 1,
            },
            "augment": OFF,
            "optim": {
                "epochs": 1,
                "warmup_epochs": 0.25,
                "global_batch": 8,
                "micro_batch": 4,
                "lr": 1e-2,
                "drop_path": 0.0,
            },
            "test": {"segments": 1, "crops": 1},
            "log": {"every": 1},
        }
        for key, value in changes.items():
            both = isinstance(value, dict) and isinstance(config.get(key), dict)
            config[key] = config[key] | value if both else value
        return config

    return make
