"""bench/overlap.py trains on two network namespaces, and sends what it should."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from contextlib import nullcontext

import pytest

from tests.helpers.paths import REPOSITORY


@pytest.fixture
def overlap(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "bench"))
    return importlib.import_module("overlap")


def test_without_its_tools_it_is_a_sentence(overlap, monkeypatch, capsys) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert overlap.main([]) == 2
    error = capsys.readouterr().err
    assert "network namespaces: found no ip and no tc, expected" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("difference", ["0.5", "NaN"])
def test_what_differs_from_the_plain_loop_is_not_timed(
    overlap, monkeypatch, capsys, difference
) -> None:
    class OneMachine:
        def start(self, rank, command, environment, **pipes):
            answer = f'ANSWER{{"difference": {difference}, "limit": 0.1}}'
            return subprocess.Popen([sys.executable, "-c", f"print({answer!r}); input()"], **pipes)

    monkeypatch.setattr(overlap, "two_namespaces", lambda: nullcontext(OneMachine()))
    assert overlap.main([]) == 2
    assert "in fp32: found a difference of" in capsys.readouterr().err


@pytest.mark.slow
def test_it_trains_as_a_plain_loop_and_sends_each_gradient_once(overlap, tmp_path, capsys) -> None:
    output = tmp_path / "overlap.json"
    if overlap.main(["--rounds", "1", "--clips", "1", "--json", str(output)]) == 2:
        error = capsys.readouterr().err
        assert "network namespaces: found" in error and error.count("\n") == 1
        pytest.skip(error)
    result = json.loads(output.read_text())
    printed = capsys.readouterr().out
    assert list(result["precisions"]) == ["fp32", "bf16"]
    for precision, found in result["precisions"].items():
        assert found["difference"] <= found["limit"]
        # half of the gradients (fp32), of the weights and of the target encoder's leave a process
        weight = {"fp32": 4, "bf16": 2}[precision]
        weights = found["parameters"] + found["encoder_parameters"]
        least = (4 * found["parameters"] + weight * weights) / 2
        assert least <= found["sent_bytes"] < 1.1 * least
        assert [row["ratio"] for row in found["rows"]] == [0.5, 1.0, 2.0]
        for row in found["rows"]:
            assert row["seconds"].keys() == set(overlap.TASKS)
        assert f"parameters in {precision}" in printed
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "overlapped / longer" in printed
