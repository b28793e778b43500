"""bench/decode.py runs, and does not time a decoder that shows wrong frames."""

import argparse
import importlib
import json
import subprocess
import sys
import time

import pytest
import torch

from tests.helpers.paths import REPOSITORY

ONE_CASE = ["--sizes", "96x64", "--gops", "12", "--lengths", "4", "--crop-size", "64"]


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "bench"))
    return importlib.import_module("decode")


def test_it_makes_checks_and_times(bench, tmp_path, capsys):
    output = tmp_path / "rows.jsonl"
    arguments = [*ONE_CASE, "--providers", "pyav", "dali cpu", "--seconds", "0.1"]
    assert bench.main([*arguments, "--output", str(output)]) == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(row["provider"], row["codec"], row["baseline"]) for row in rows] == [
        ("pyav", "h264", True),
        ("pyav", "vp9", True),
        ("dali cpu", "h264", False),
        ("dali cpu", "vp9", False),
    ]
    skipped = rows.pop(2)
    assert (
        "DALI decodes none of the videos on cpu: 2 h264" in skipped["skipped"]
        and "clips_per_s" not in skipped
    )
    for row in rows:
        assert row["frames_per_s"] == pytest.approx(4 * row["clips_per_s"])
        assert row["cpu_percent"] > 0 and row["cpu_ms_per_clip"] > 0 and row["resident_mib"] > 50
        assert (row["width"], row["height"], row["gop"], row["num_frames"]) == (96, 64, 12, 4)
        assert row["threads"] == 2 and row["torch"] == torch.__version__
    assert "clips/s" in capsys.readouterr().out


def test_the_work_of_other_processes_counts(bench):
    program = (
        "import time; end = time.process_time() + 0.3\nwhile time.process_time() < end: pass\n"
    )
    before = bench._cpu_seconds()
    with subprocess.Popen([sys.executable, "-c", program + "input()"], stdin=-1) as process:
        while bench._cpu_seconds() - before < 0.3:
            assert process.poll() is None
            time.sleep(0.05)
        assert process.pid in bench._family()
        process.communicate(b"\n")


@pytest.mark.parametrize("off", ["frames", "pixels"])
def test_a_decoder_that_shows_wrong_frames_is_not_timed(bench, monkeypatch, tmp_path, off):
    right = bench.PROVIDERS["pyav"]

    def wrong(*arguments):
        for video in right(*arguments):
            yield video.roll(1, dims=1) if off == "frames" else video // 2 + 60

    monkeypatch.setitem(bench.PROVIDERS, "pyav", wrong)
    manifest = bench.make_videos(tmp_path, "vp9", (96, 64), 12)
    case = {"codec": "vp9", "width": 96, "height": 64, "gop": 12, "num_frames": 4}
    options = argparse.Namespace(crop_size=64, threads=1, seconds=0.1)
    (row,) = bench.run_provider("pyav", [case | {"manifest": str(manifest)}], options)
    assert ("shows frames" if off == "frames" else "gray levels") in row["wrong"]
    assert "clips_per_s" not in row


def test_clips_decoded_by_pyav_do_not_count_for_dali(bench, monkeypatch, tmp_path):
    manifest = bench.make_videos(tmp_path, "vp9", (96, 64), 12)
    monkeypatch.setattr("vjepa_fast.data.decode.dali.IN_MEMORY", 100)  # too little for any part
    case = {"codec": "vp9", "width": 96, "height": 64, "gop": 12, "num_frames": 4}
    options = argparse.Namespace(crop_size=64, threads=1, seconds=0.1)
    (row,) = bench.run_provider("dali cpu", [case | {"manifest": str(manifest)}], options)
    assert "another decoder took over from dali" in row["skipped"]
    assert "clips_per_s" not in row


def test_a_wrong_row_or_a_crash_is_a_failure(bench, monkeypatch, capsys):
    rows = [{"provider": "pyav", "wrong": "shows frames"}]
    monkeypatch.setattr(bench, "_in_own_process", lambda *_: iter(rows))
    arguments = [*ONE_CASE, "--codecs", "vp9", "--providers", "pyav"]
    assert bench.main(arguments) == 1
    rows[0] = {"provider": "pyav", "skipped": "no library"}
    assert bench.main(arguments) == 0
    assert "skipped: no library" in capsys.readouterr().out
