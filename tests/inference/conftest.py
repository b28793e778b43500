"""A tiny run of each generation on the demo videos, trained once for all tests of the folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.trainers import SECOND
from vjepa_fast.config import parse_config
from vjepa_fast.training.loop import pretrain


@pytest.fixture(scope="session")
def runs(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Folders of two runs by generation: 4 frames at a step of 2, and at 4 frames per second."""

    def train(generation: int) -> Path:
        data = {
            "output": str(tmp_path_factory.mktemp("runs") / f"generation_{generation}"),
            "data": {
                "manifests": [str(demo / "train.csv")],
                "num_frames": 4,
                "crop_size": 28,
                "num_workers": 1,
            },
            "model": {
                "encoder": {"width": 24, "depth": 2, "heads": 2},
                "predictor": {"width": 12, "depth": 1, "heads": 2},
                "patch_size": 7,
            },
            "optim": {
                "steps": 2,
                "global_batch": 4,
                "micro_batch": 4,
                "warmup_steps": 0,
                "lr": 1e-2,
            },
            "teacher": {"momentum": [0.5, 1.0]},
            "masks": {
                "specs": [{"num_blocks": 2, "spatial_scale": [0.3, 0.3]}],
                "truncate": "none",
            },
        }
        data["data"] |= {"frame_step": 2} if generation == 1 else {"fps": 4}
        data["model"] |= SECOND if generation == 2 else {}
        return pretrain(parse_config(data))

    return {1: train(1), 2: train(2)}
