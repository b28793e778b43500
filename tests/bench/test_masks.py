"""bench/masks.py runs, and does not time wrong masks."""

import importlib
import json

import pytest

from tests.helpers.paths import REPOSITORY
from vjepa_fast.masks import MultiBlock
from vjepa_fast.training.monitoring.environment import processor


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "bench"))
    return importlib.import_module("masks")


def test_it_compares_and_then_times(bench, monkeypatch, tmp_path, capsys):
    first = bench.cases()[:2]
    monkeypatch.setattr(bench, "cases", lambda: first)
    output = tmp_path / "new" / "rows.jsonl"
    assert bench.main(["--repeats", "5", "--check-steps", "12", "--output", str(output)]) == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    providers = ["plain torch", "vjepa_fast", "MaskCollator", "plain torch", "vjepa_fast"]
    assert [row["provider"] for row in rows] == providers
    assert [row["baseline"] for row in rows] == [name == "plain torch" for name in providers]
    assert all(0 < row["p20_us"] <= row["p50_us"] <= row["p80_us"] for row in rows)
    for row, base in zip(rows, [rows[0]] * 3 + [rows[3]] * 2, strict=True):
        assert row["speedup"] == pytest.approx(base["p50_us"] / row["p50_us"])
    assert all(row["cpu"] == processor() and row["cores"] >= 1 and row["python"] for row in rows)
    assert "plain torch" in capsys.readouterr().out


def test_another_recipe_is_not_timed(bench, monkeypatch, capsys):
    ours = bench.MaskSampler
    other = (MultiBlock(7, (0.15, 0.15)), MultiBlock(2, (0.7, 0.7)))
    monkeypatch.setattr(bench, "MaskSampler", lambda specs, *a, **k: ours(other, *a, **k))
    assert bench.main(["--repeats", "2", "--check-steps", "200"]) == 1
    printed = capsys.readouterr()
    assert "statistics differ" in printed.err and "median" not in printed.out


def test_masks_that_differ_between_threads_are_not_timed(bench, monkeypatch, capsys):
    """The statistics are right, but the masks that several threads write are not."""
    ours = bench.MaskSampler

    class Other(ours):
        def sample(self, step, ids, sizes=None):
            masks = super().sample(step, ids, sizes)
            if len(ids) == 1536 and self.num_threads != 1:
                masks.context_tokens[-1] += 1
            return masks

    monkeypatch.setattr(bench, "MaskSampler", Other)
    some = bench.cases()[1:4:2]
    monkeypatch.setattr(bench, "cases", lambda: some)
    assert bench.main(["--repeats", "1", "--check-steps", "12"]) == 1
    printed = capsys.readouterr()
    assert "batch 1536: vjepa_fast, one thread draws other masks" in printed.err
    assert "batch 1 " in printed.out and "batch 1536" not in printed.out


def test_a_collator_with_other_masks_is_not_timed(bench, monkeypatch, capsys):
    ours = bench.MaskCollator
    monkeypatch.setattr(bench, "MaskCollator", lambda *arguments: ours(*arguments, seed=1))
    assert bench.main(["--repeats", "1", "--check-steps", "12"]) == 1
    printed = capsys.readouterr()
    assert "paper, batch 24: MaskCollator draws other masks" in printed.err
    assert "MaskCollator" not in printed.out


@pytest.mark.parametrize(
    "arguments",
    [("--check-steps", "1"), ("--check-steps", "0"), ("--repeats", "0"), ("--output", "/")],
)
def test_bad_arguments_are_rejected_at_once(bench, arguments, monkeypatch, capsys):
    monkeypatch.setattr(bench, "compare_statistics", lambda steps: pytest.fail("it continued"))
    with pytest.raises(SystemExit) as caught:
        bench.main(list(arguments))
    assert caught.value.code == 2
    assert f"{arguments[0]}: found" in capsys.readouterr().err
