"""Metrics on a disk that is full for a while: really full."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.helpers.forked_runs import small_file_system
from vjepa_fast.training.monitoring.append import Lines
from vjepa_fast.training.monitoring.writer import MetricsWriter, read_metrics


def fill(ballast: Path) -> None:
    """Write until there is no room."""
    with ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(512))


@pytest.mark.skipif(os.getuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_costs_no_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
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
        assert caplog.text.count("expected some; the run goes on") == 1
        assert len(read_metrics(run / "metrics.jsonl")) < 200
        ballast.unlink()
        writer.write(200, {"loss": 0.0})
        writer.close()
        rows = read_metrics(run / "metrics.jsonl")
        assert [row["step"] for row in rows] == list(range(201))
        board = EventAccumulator(str(run / "tensorboard")).Reload()
        assert [event.step for event in board.Scalars("loss")] == [0, 200]


def test_half_a_line_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lines"
    path.write_text("before\n")
    lines = Lines(path)
    lines.append("one")
    write = os.write

    def half(file: int, data: bytes) -> int:
        if len(data) < 6:
            raise OSError(28, "No space left on device")
        return write(file, data[: len(data) // 2])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", half)
        with pytest.raises(OSError, match="No space"):
            lines.append("and two")
    assert path.read_text() == "before\none\n"
    lines.append("three")
    lines.close()
    assert path.read_text() == "before\none\nand two\nthree\n"
