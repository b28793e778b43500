"""bench/overlap.py trains on two network namespaces, and sends what it should."""

from __future__ import annotations

import importlib
import json
import shutil

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


@pytest.mark.slow
def test_it_trains_as_a_plain_loop_and_sends_each_gradient_once(overlap, tmp_path, capsys) -> None:
    output = tmp_path / "overlap.json"
    if overlap.main(["--rounds", "1", "--clips", "1", "--json", str(output)]) == 2:
        error = capsys.readouterr().err
        assert "network namespaces: found" in error and error.count("\n") == 1
        pytest.skip(error)
    result = json.loads(output.read_text())
    assert result["difference"] <= overlap.LIMIT
    # half of the gradients, of the weights and of the target encoder's weights leave each process
    least = 4 * (2 * result["parameters"] + result["encoder_parameters"]) / 2
    assert least <= result["sent_bytes"] < 1.1 * least
    assert [row["ratio"] for row in result["rows"]] == [0.5, 1.0, 2.0]
    for row in result["rows"]:
        assert row["seconds"].keys() == set(overlap.TASKS)
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "overlapped / longer" in capsys.readouterr().out
