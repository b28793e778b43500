"""The collapse monitor detects both forms of collapse; metrics survive a kill."""

import json
import logging
from pathlib import Path

import pytest
import torch

from vjepa_fast.training.monitoring.collapse import CollapseMonitor, feature_health, rank_me
from vjepa_fast.training.monitoring.curves import draw_curves
from vjepa_fast.training.monitoring.writer import MetricsWriter, read_metrics


def test_features_that_are_a_function_of_the_position_are_collapsed() -> None:
    generator = torch.Generator().manual_seed(0)
    positions = torch.randn(1, 20, 32, generator=generator)
    noise = torch.randn(16, 20, 32, generator=generator)
    collapsed, healthy = positions + 0.03 * noise, positions + noise
    assert collapsed.std((0, 1)).mean() > 0.9  # token by token it looks healthy
    assert feature_health(collapsed)["std_across_clips"] < 0.05
    assert feature_health(healthy)["std_across_clips"] > 0.5


def test_rank_me_counts_directions() -> None:
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(64, 64, generator=generator)).Q
    for rank in (1, 5, 20):
        features = basis[:, :rank] @ basis[:rank]
        assert rank_me(features) == pytest.approx(rank, rel=0.02)


def test_warning_comes_once_and_says_what_to_do(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("vjepa_fast")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", True)
    monitor = CollapseMonitor()
    # the measured collapse of docs/log.md: lr 1e-3, momentum from 0.98
    with caplog.at_level(logging.WARNING, "vjepa_fast"):
        seen = [
            monitor.check(step, {"std_across_clips": std, "rank_me": 70.0})
            for step, std in ((1, 0.295), (50, 0.133), (100, 0.064), (150, 0.032))
        ]
    assert seen == [False, False, True, True]
    assert len(caplog.records) == 1
    assert "raise teacher.momentum, lower optim.lr" in caplog.text
    assert monitor.check(200, {"std_across_clips": float("nan"), "rank_me": 1.0})


def test_metrics_of_steps_to_be_run_again_are_dropped(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, 0, None, {})
    for step in range(6):
        writer.write(step, {"loss": 1.0 / (step + 1)})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # a kill in mid-line
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 6
    writer = MetricsWriter(tmp_path, 4, None, {})
    writer.write(4, {"loss": 0.5})
    writer.close()
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]
    assert lines[-1]["loss"] == 0.5
    assert draw_curves(tmp_path).read_bytes().startswith(b"\x89PNG")
