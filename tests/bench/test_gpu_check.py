"""bench/gpu_check.py continues after failing parts, reports each one, and runs dry on a CPU."""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.helpers.paths import REPOSITORY

BENCH = REPOSITORY / "bench"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    names = {"main": "gpu_check", "parts": "gpu.parts", "run": "gpu.run_part"}
    return SimpleNamespace(**{k: importlib.import_module(name) for k, name in names.items()})


@pytest.fixture
def part(bench):
    """Makes a part that runs Python code, a process for each text."""

    def make(name, *codes, limit=60, read=lambda folder: ({}, []), **others):
        commands = [(sys.executable, "-c", code) for code in codes]
        return bench.run.Part(name, f"part {name}", commands, limit, read, **others)

    return make


def alive(process):
    """Whether it runs; one that has ended and waits for its parent doesn't."""
    try:
        text = Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False
    return text.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.slow
def test_each_part_has_its_own_end(bench, part, tmp_path, capsys):
    child = "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', 'import "
    child += "time; time.sleep(600)']); print(p.pid, flush=True); time.sleep(600)"

    def read(folder):
        text = (folder / "good.log").read_text()
        return {"text": text}, [f"said {text.strip()}"]

    chosen = [
        part("bad", "print('before'); raise RuntimeError('broken here')", "print('never')"),
        part("crashed", "import os; os.abort()"),
        part("hanging", child, limit=30),
        part("missing", "print('never')", needs=("sys", "no_such_module", "no_such.module")),
        part("unreadable", "pass", read=lambda folder: json.loads("{")),
        part("good", "print('one')", "import os; print(os.environ['X'])", read=read)
    ]  # fmt: skip
    chosen[-1] = bench.main.replace(chosen[-1], environment={"X": "two"})
    assert bench.main.check(chosen, "cuda", tmp_path, 600) == 1
    report = json.loads((tmp_path / "report.json").read_text())
    found = {name: (one["status"], one["why"]) for name, one in report["parts"].items()}
    assert found == {
        "bad": ("failed", "exit status 1"),
        "crashed": ("failed", "exit status -6"),
        "hanging": ("timed out", "killed after 30 s"),
        "missing": ("left out", "not installed here: no_such_module, no_such.module"),
        "unreadable": found["unreadable"],
        "good": ("passed", ""),
    }
    assert found["unreadable"][0] == "failed" and "JSONDecodeError" in found["unreadable"][1]
    assert report["outcome"] == "1 passed, 3 failed, 1 timed out, 1 left out"
    assert "broken here" in report["parts"]["bad"]["log"][-1]
    assert "never" not in (tmp_path / "bad.log").read_text()
    assert report["parts"]["good"]["figures"] == {"text": "one\ntwo\n"}
    child = int((tmp_path / "hanging.log").read_text().split()[0])
    end = time.monotonic() + 120
    while alive(child) and time.monotonic() < end:
        time.sleep(0.05)
    assert not alive(child)
    page = (tmp_path / "report.md").read_text()
    assert re.search(r"part hanging \| \*\*timed out\*\* \| \d+ \|", page) and "- said one" in page
    assert "| part missing | left out | 0 |" in page and "RuntimeError: broken here" in page
    assert page in capsys.readouterr().out


def test_a_missing_package_is_no_failure_and_time_is_one_budget(bench, part, tmp_path):
    assert bench.main.check([part("missing", needs=("no_such",))], "cuda", tmp_path, 100) == 0
    slow = [part("slow", "import time; time.sleep(60)"), part("late", "pass")]
    assert bench.main.check(slow, "cuda", tmp_path, 1.5) == 1
    parts = json.loads((tmp_path / "report.json").read_text())["parts"]
    assert [one["status"] for one in parts.values()] == ["timed out", "timed out"]
    assert "before it began" in parts["late"]["why"]


def test_mistakes_are_sentences(bench, tmp_path, capsys):
    assert bench.main.main([]) == 2
    assert f"found no GPU that torch {torch.__version__} can use" in capsys.readouterr().err
    (tmp_path / "old").write_text("")
    assert bench.main.main(["--device", "cpu", "--output", str(tmp_path)]) == 2
    assert "which is not empty" in capsys.readouterr().err


def test_one_gpu_is_seen(bench, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for before, after in ((None, "0"), ("3,4", "3"), ("GPU-5b", "GPU-5b")):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        if before:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", before)
        bench.main.one_gpu("cuda")
        assert os.environ["CUDA_VISIBLE_DEVICES"] == after


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_commands_name_options_and_files_that_are_there(bench, device, tmp_path):
    """What a GPU runs is spelled right, too: scripts, configs, and options of their parsers."""
    for part in bench.parts.parts(device, tmp_path):
        for command in part.commands:
            files = [item for item in command if item.endswith((".py", "configs/tiny.json"))]
            files += [command[command.index("--config") + 1]] if "--config" in command else []
            assert all(Path(item).exists() for item in files), command
            source = Path(command[1]).read_text() if command[1].endswith(".py") else ""
            if source:  # --config and --set of train.py, --json of the benchmarks
                source += (REPOSITORY / "vjepa_fast/commands/terminal.py").read_text()
                source += (BENCH / "common.py").read_text()
            for item in command if source else ():
                assert not item.startswith("--") or f'"{item.replace("--no-", "--")}"' in source


def test_a_part_that_did_not_do_its_work_has_not_passed(bench, tmp_path, monkeypatch):
    error = bench.parts.UserError
    (tmp_path / "kernel_tests.log").write_text("1 passed, 2 skipped in 3s\n")
    with pytest.raises(error, match="2 skipped"):
        bench.parts.read_tests(tmp_path)
    (tmp_path / "run").mkdir()
    rows = [{"step": 0, "loss": 0.8}, {"step": 49, "loss": float("nan")}]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    with pytest.raises(error, match="found step 49 with loss nan"):
        bench.parts.read_training(tmp_path, 50)
    rows = [
        {"provider": "pyav", "codec": "h264", "width": 8, "height": 8}
        | {"clips_per_s": 1.0, "cpu_ms_per_clip": 2.0},
        {"provider": "dali gpu", "skipped": "no NVDEC"},
    ]
    (tmp_path / "decode.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    for there in (True, False):
        monkeypatch.setattr(bench.parts, "installed", lambda module, there=there: there)
        if there:
            with pytest.raises(error, match="dali gpu: found no figure \\(no NVDEC\\)"):
                bench.parts.read_decode(tmp_path, "dali gpu")
        else:
            _, lines = bench.parts.read_decode(tmp_path, "dali gpu")
            assert "DALI is not installed here" in lines[-1]


@pytest.mark.slow
def test_dry_run_on_a_cpu(bench, tmp_path, capsys):
    folder = tmp_path / "report"
    assert bench.main.main(["--device", "cpu", "--output", str(folder)]) == 0
    report = json.loads((folder / "report.json").read_text())
    assert {one["status"] for one in report["parts"].values()} == {"passed"}, report["outcome"]
    assert list(report["parts"]) == [
        *("device", "kernel_tests", "training", "vitl16", "vith16", "v2_vitl16"),
        *("kernels", "colors", "decode"),
    ]
    parts = report["parts"]
    assert parts["device"]["figures"]["torch"] == torch.__version__
    assert parts["training"]["figures"]["last"]["step"] == 2
    assert parts["vith16"]["figures"]["ratio"] > 0
    errors = [row[name] for row in parts["colors"]["figures"]["rows"] for name in ("dali", "pyav")]
    assert len(errors) == 4 and max(errors) < 3
    providers = {row["provider"] for row in parts["decode"]["figures"]["rows"]}
    assert providers == {"pyav", "dali cpu"}
    assert "tiny.json in place of ViT-L/16" in (folder / "report.md").read_text()
