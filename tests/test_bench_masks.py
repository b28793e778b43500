"""The mask benchmark runs, and times nothing that is wrong."""

import importlib.util
import json
from pathlib import Path

import pytest

from vjepa_fast.masks import MultiBlock

PATH = Path(__file__).resolve().parent.parent / "bench" / "masks.py"


@pytest.fixture
def bench():
    spec = importlib.util.spec_from_file_location("bench_masks", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_compares_and_then_times(bench, monkeypatch, tmp_path, capsys):
    first = bench.cases()[:2]
    monkeypatch.setattr(bench, "cases", lambda: first)
    output = tmp_path / "rows.jsonl"
    assert bench.main(["--repeats", "5", "--check-steps", "12", "--output", str(output)]) == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["baseline"] for row in rows] == [True, False, False] * 2
    assert all(0 < row["p20_us"] <= row["p50_us"] <= row["p80_us"] for row in rows)
    # 200 times is the aim on a quiet machine; a tenth of it holds on any.
    assert rows[2]["speedup"] > 20
    assert "plain torch" in capsys.readouterr().out


def test_it_refuses_to_time_another_recipe(bench, monkeypatch, capsys):
    ours = bench.MaskSampler
    other = (MultiBlock(7, (0.15, 0.15)), MultiBlock(2, (0.7, 0.7)))
    monkeypatch.setattr(bench, "MaskSampler", lambda specs, *a, **k: ours(other, *a, **k))
    assert bench.main(["--repeats", "2", "--check-steps", "200"]) == 1
    printed = capsys.readouterr()
    assert "statistics differ" in printed.err and "median" not in printed.out
