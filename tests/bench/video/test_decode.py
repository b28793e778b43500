"""bench/decode.py runs, and does not time a decoder that shows wrong frames."""

import argparse
import importlib
import json
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from tests.helpers.paths import REPOSITORY

ONE_CASE = [
    *("--codecs", "h264", "vp9", "--sizes", "96x64", "--gops", "12", "--lengths", "4"),
    *("--crop-size", "64", "--frames", "60"),
]
OPTIONS = argparse.Namespace(crop_size=64, threads=1)


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "bench"))
    return importlib.import_module("decode")


@pytest.fixture
def side(bench):
    return sys.modules["decoding.side"]


@pytest.fixture
def case(bench, tmp_path):
    manifest, _ = bench.make_video(tmp_path, "vp9", (96, 64), 12, 60)
    return {"width": 96, "height": 64, "num_frames": 4, "manifest": str(manifest)}


def test_it_makes_checks_and_times(bench, tmp_path, capsys):
    output = tmp_path / "rows.jsonl"
    arguments = [*ONE_CASE, "--providers", "pyav", "pyav alone", "dali cpu"]
    arguments += ["--rounds", "2", "--seconds", "0.1"]
    assert bench.main([*arguments, "--output", str(output)]) == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(row["provider"], row["codec"], row["baseline"]) for row in rows] == [
        ("pyav", "h264", True),
        ("pyav alone", "h264", False),
        ("dali cpu", "h264", False),
        ("pyav", "vp9", True),
        ("pyav alone", "vp9", False),
        ("dali cpu", "vp9", False),
    ]
    skipped = rows.pop(2)
    assert (
        "DALI decodes none of the videos on cpu: 1 h264" in skipped["skipped"]
        and "clips_per_s" not in skipped
    )
    for row in rows:
        assert row["cpu_percent"] > 0 and row["cpu_ms_per_clip"] > 0 and row["resident_mib"] > 50
        assert row["cpu_ms"]["p20"] <= row["cpu_ms_per_clip"] <= row["cpu_ms"]["p80"]
        assert (row["width"], row["height"], row["gop"], row["num_frames"]) == (96, 64, 12, 4)
        assert row["threads"] == 2 and row["torch"] == torch.__version__
        assert (row["b_frames"] > 0) == (row["codec"] == "h264")
    assert "clips/s" in capsys.readouterr().out


class Scripted:
    """A side that answers with figures of its own and remembers what it was asked."""

    def __init__(self, name, asked, cpu_ms=None, start=None):
        self.name, self._asked, self._cpu_ms = name, asked, iter(cpu_ms or [])
        self._start = start or {}

    def ask(self, **request):
        self._asked.append((self.name, *request))
        if "case" in request:
            return self._start
        if "batches" not in request:
            return {}
        cpu_ms = next(self._cpu_ms)
        return {"clips_per_s": 40.0, "cpu_ms_per_clip": cpu_ms}


def test_the_decoders_take_turns_and_the_ratio_is_of_the_same_round(bench):
    asked = []
    sides = [
        Scripted("pyav", asked, [9e9, 10.0, 30.0, 21.0]),
        Scripted("dali cpu", asked, start={"skipped": "not here"}),
        Scripted("decord", asked, [1.0, 20.0, 40.0, 30.0]),
        Scripted("pyav alone", asked, [1.0, 10.0, 10.0, 21.0]),
    ]
    case = dict.fromkeys(("codec", "width", "height", "gop", "num_frames", "bytes", "b_frames"), 1)
    options = argparse.Namespace(rounds=3, seconds=1.0)
    ours, skipped, other, alone = bench.run_case(case, sides, options)
    assert [name for name, what in asked if what == "batches"] == [
        *("pyav", "decord", "pyav alone"),
        *("decord", "pyav alone", "pyav"),
        *("pyav alone", "pyav", "decord"),
        *("pyav", "decord", "pyav alone"),
    ]
    assert (ours["cpu_ms_per_clip"], other["cpu_ms_per_clip"]) == (21.0, 30.0)
    assert ours["cpu_to"] == {"decord": 0.7} and "cpu_to" not in other
    assert alone["cpu_to"] == {"decord": 0.5}
    assert ours["batches"] == other["batches"] == 10
    assert skipped["skipped"] == "not here" and "cpu_ms" not in skipped


def test_the_work_of_other_processes_counts(bench):
    usage = sys.modules["decoding.usage"]
    program = (
        "import time; end = time.process_time() + 0.3\nwhile time.process_time() < end: pass\n"
    )
    before = usage.cpu_seconds()
    with subprocess.Popen([sys.executable, "-c", program + "input()"], stdin=-1) as process:
        while usage.cpu_seconds() - before < 0.3:
            assert process.poll() is None
            time.sleep(0.05)
        assert process.pid in usage.family()
        process.communicate(b"\n")


def test_quiet_is_when_the_work_has_ended(bench):
    usage = sys.modules["decoding.usage"]
    program = (
        "import time; end = time.process_time() + 0.5\nwhile time.process_time() < end: pass\n"
    )
    with subprocess.Popen([sys.executable, "-c", program + "input()"], stdin=-1) as process:
        family = [process.pid]
        while usage.cpu_seconds(family) < 0.1:
            time.sleep(0.01)
        usage.until_quiet(family)
        assert usage.cpu_seconds(family) >= 0.5
        process.communicate(b"\n")


def test_what_is_ready_to_run_is_not_quiet(bench):
    """On a busy machine it may have no core for longer than `until_quiet` waits."""
    usage = sys.modules["decoding.usage"]
    for program, ready in (("input()", False), ("print(flush=True)\nwhile True: pass", True)):
        command = [sys.executable, "-c", "print(flush=True)\n" + program]
        with subprocess.Popen(command, stdin=-1, stdout=-1) as process:
            for _ in range(1 + ready):
                process.stdout.readline()
            while not ready and usage._is_ready([process.pid]):
                time.sleep(0.01)
            assert usage._is_ready([process.pid]) == ready
            process.kill()


def test_numbers_are_read_at_any_size(bench, tmp_path):
    manifest, facts = bench.make_video(tmp_path, "vp9", (200, 64), 12, 20)
    assert manifest.is_file() and facts["b_frames"] == 0 and facts["bytes"] > 1000
    bits = 700 >> (np.arange(100) * 10 // 100) & 1
    shown = np.broadcast_to(255 * bits[None, None, :, None], (1, 40, 100, 3))
    assert sys.modules["decoding.videos"].frame_numbers(shown) == [700]


@pytest.mark.parametrize("off", ["frames", "pixels"])
def test_a_decoder_that_shows_wrong_frames_is_not_timed(side, monkeypatch, case, off):
    right = side.PROVIDERS["pyav"]

    def wrong(*arguments):
        for video in right(*arguments):
            yield video.roll(1, dims=1) if off == "frames" else video // 2 + 60

    monkeypatch.setitem(side.PROVIDERS, "pyav", wrong)
    decoding = side.Decoding("pyav", case, OPTIONS)
    decoding.close()
    assert ("shows frames" if off == "frames" else "gray levels") in decoding.wrong


def test_clips_decoded_by_pyav_do_not_count_for_dali(side, monkeypatch, case):
    monkeypatch.setattr("vjepa_fast.data.decode.dali.IN_MEMORY", 100)  # too little for any part
    with pytest.raises(side.UserError, match="another decoder took over from dali"):
        side.Decoding("dali cpu", case, OPTIONS)


def test_a_wrong_row_or_a_crash_is_a_failure(bench, monkeypatch, capsys):
    answers = {}
    monkeypatch.setattr(
        bench, "Side", lambda _, name, __: ScriptedContext(Scripted(name, [], start=answers))
    )
    arguments = [*ONE_CASE, "--codecs", "vp9", "--providers", "pyav"]
    answers["wrong"] = "shows frames"
    assert bench.main(arguments) == 1
    del answers["wrong"]
    answers["skipped"] = "no library"
    assert bench.main(arguments) == 0
    assert "skipped: no library" in capsys.readouterr().out


class ScriptedContext:
    def __init__(self, inner):
        self._inner = inner

    def __enter__(self):
        return self._inner

    def __exit__(self, *_):
        pass


def test_a_process_that_ends_is_wrong(side, tmp_path):
    script = tmp_path / "ends.py"
    script.write_text("import sys; input(); print('no such thing', file=sys.stderr); sys.exit(3)")
    with side.Side(str(script), "pyav", OPTIONS) as one:
        for _ in range(2):
            assert one.ask(case={}) == {"wrong": "ended with 3 (no such thing)"}
