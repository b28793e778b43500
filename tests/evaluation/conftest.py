"""A run of two steps, whose encoder the tests probe."""

from __future__ import annotations

from pathlib import Path

import pytest

from vjepa_fast.config import parse_config
from vjepa_fast.training.loop import pretrain


@pytest.fixture(scope="session")
def trained(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's folder; copy it before writing to it."""
    return pretrain(
        parse_config(
            {
                "output": str(tmp_path_factory.mktemp("runs") / "run"),
                "data": {
                    "manifests": [str(demo / "train.csv")],
                    "num_frames": 8,
                    "frame_step": 1,
                    "crop_size": 24,
                    "num_workers": 1,
                },
                "model": {
                    "encoder": {"width": 24, "depth": 2, "heads": 2},
                    "predictor": {"width": 12, "depth": 1, "heads": 2},
                    "patch_size": 8,
                },
                "masks": {
                    "specs": [{"num_blocks": 1, "spatial_scale": [0.5, 0.5]}],
                    "truncate_group": 8,
                },
                "optim": {"steps": 2, "global_batch": 8, "micro_batch": 8, "warmup_steps": 1},
            }
        )
    )
