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
    assert best_heads(SPECS, VALIDATION) == {("a", 0.5): [1, 2], ("a", 1.0): [5]}
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
    assert best_heads(specs, scores) == {("a", 1.0): [1]}


def test_one_head_needs_no_validation():
    alone = SPECS[::2]
    assert best_heads(alone, None) == {("a", 0.5): [0, 1], ("a", 1.0): [2]}
    with pytest.raises(ValueError, match="found none for 2 heads"):
        best_heads(SPECS, None)


def test_the_whole_grid_is_kept():
    grid = whole_grid(SPECS, VALIDATION, TEST, [0.5, math.nan, 1.0, 1.0, 1.0, 1.0])
    assert [row["test"] for row in grid] == TEST
    assert grid[1]["loss"] is None and grid[0]["lr"] == 1e-3 and grid[5]["share"] == 1.0
