"""A run of two steps, whose encoder the tests probe, and `vjepa-fast probe` on it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from vjepa_fast import cli
from vjepa_fast.config import parse_config
from vjepa_fast.training.loop import pretrain

QUICK = ["--epochs", "2", "--batch", "16"]


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


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A run of two steps, to write to."""
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def probe(run: Path, capsys: pytest.CaptureFixture) -> Callable[..., tuple[dict, str]]:
    """Probes the run: the content of probe.json, and what was printed."""

    def call(*arguments: str, labels: str = "digit", status: int = 0) -> tuple[dict, str]:
        quick = [] if "knn" in arguments else QUICK
        command = ["probe", "--checkpoint", str(run), "--labels", labels, *quick, *arguments]
        assert cli.main(command) == status, capsys.readouterr().err
        captured = capsys.readouterr()
        if status:
            return {}, captured.err
        out = Path(command[command.index("--output") + 1]) if "--output" in command else run
        return json.loads((out / "probe.json").read_text()), captured.out + captured.err

    return call
