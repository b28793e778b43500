"""A disk that is full for a while costs metrics, not the run; written lines are complete."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.helpers.forked_runs import small_file_system
from vjepa_fast.training.monitoring.writer import MetricsWriter, read_metrics


def fill(ballast: Path) -> None:
    """Write until the disk is full."""
    with ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(512))


@pytest.mark.skipif(os.getuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_is_one_warning_and_metrics_continue_after_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    with small_file_system(run, 2**20):
        writer = MetricsWriter(run, 0, None, {})
        writer.write(0, {"loss": 1.0})
        ballast = run / "ballast"
        with pytest.raises(OSError, match="No space left"):
            fill(ballast)
        with caplog.at_level(logging.WARNING, "vjepa_fast"):
            for step in range(1, 200):
                writer.write(step, {"loss": 1.0 / step})
        assert caplog.text.count("expected free space; free some") == 1
        assert "the run continues" in caplog.text
        kept = [row["step"] for row in read_metrics(run / "metrics.jsonl")]
        assert len(kept) < 200 and kept == sorted(set(kept))
        ballast.unlink()
        writer.write(200, {"loss": 0.0})
        writer.close()
        steps = [row["step"] for row in read_metrics(run / "metrics.jsonl")]
        assert steps == [*kept, 200]
        board = EventAccumulator(str(run / "tensorboard")).Reload()
        assert [event.step for event in board.Scalars("loss")] == [0, 200]


def test_half_a_line_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = MetricsWriter(tmp_path, 0, None, {})
    writer.write(0, {"loss": 1.0})
    write, path = os.write, tmp_path / "metrics.jsonl"
    before = path.read_text()

    def half(file: int, data: bytes) -> int:
        if len(data) < 6:
            raise OSError(28, "No space left on device")
        return write(file, data[: len(data) // 2])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", half)
        writer.write(1, {"loss": 0.5})
    assert path.read_text() == before
    writer.write(2, {"loss": 0.25})
    writer.close()
    assert [row["step"] for row in read_metrics(path)] == [0, 2]
