"""The best head of each draw, by validation."""

import math

import pytest

from vjepa_fast.evaluation.heads.spec import HeadSpec
from vjepa_fast.evaluation.report.selection import best_heads, summary, whole_grid

SPECS = [
    HeadSpec("a", 3, draw, share, lr, 0.01)
    for share, draws in ((0.5, 2), (1.0, 1))
    for draw in range(draws)
    for lr in (1e-3, 1e-2)
]
VALIDATION = [{"top1": score} for score in (0.2, 0.4, 0.6, 0.6, math.nan, 0.1)]
TEST = [{"top1": score} for score in (0.9, 0.5, 0.7, 0.8, 0.9, 0.3)]


def test_validation_chooses_not_the_test():
    assert best_heads(SPECS, VALIDATION, TEST) == {("a", 0.5): [1, 2], ("a", 1.0): [5]}
    half, whole = summary(SPECS, VALIDATION, TEST)
    assert half["test"]["top1"] == {
        "mean": pytest.approx(0.6),
        "std": pytest.approx(0.02**0.5),
    }
    assert [draw["lr"] for draw in half["draws"]] == [1e-2, 1e-3]
    assert whole["test"]["top1"] == {"mean": 0.3, "std": None}


def test_values_are_compared_by_r2():
    specs = [HeadSpec("a", 1, 0, 1.0, lr, 0.0) for lr in (1e-3, 1e-2)]
    scores = [{"mae": 0.1, "r2": 0.2}, {"mae": 0.3, "r2": 0.5}]
    assert best_heads(specs, scores, scores) == {("a", 1.0): [1]}


def test_one_head_needs_no_validation():
    alone = SPECS[::2]
    assert best_heads(alone, None, TEST[::2]) == {("a", 0.5): [0, 1], ("a", 1.0): [2]}
    with pytest.raises(ValueError, match="found none for 2 heads"):
        best_heads(SPECS, None, TEST)


def test_the_whole_grid_is_kept():
    grid = whole_grid(SPECS, VALIDATION, TEST, [0.5, math.nan, 1.0, 1.0, 1.0, 1.0])
    assert [row["test"] for row in grid] == TEST
    assert grid[1]["loss"] is None and grid[0]["lr"] == 1e-3 and grid[5]["share"] == 1.0


def test_a_head_that_learned_nothing_is_no_result():
    validation, test = list(VALIDATION), list(TEST)
    validation[2] = validation[3] = test[2] = test[3] = None
    half, whole = summary(SPECS, validation, test)
    assert half["test"]["top1"] == {"mean": 0.5, "std": None}
    assert [draw["draw"] for draw in half["draws"]] == [0] and whole["test"]["top1"]["mean"] == 0.3
    grid = whole_grid(SPECS, validation, test, [0.5] * 6)
    assert grid[2]["test"] is None and grid[2]["validation"] is None and grid[1]["test"] == TEST[1]
