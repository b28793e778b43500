"""The curves of curves.png and of the report: their coordinates, and values that are not drawn."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vjepa_fast.training.monitoring.curves import Panel, draw_panel


def drawn(panel: Panel, rows: list[dict]) -> Axes | None:
    """The axes that a panel is drawn to; None where there is nothing to draw."""
    axes = Figure().subplots()
    return axes if draw_panel(axes, panel, rows) else None


def test_curves_lie_where_their_values_are() -> None:
    rows = [{"step": 0, "a": 0.0}, {"step": 5, "a": 10.0, "b": 1.0}, {"step": 10, "a": 5.0}]
    axes = drawn(Panel("t", ("a", "b", "c")), rows)
    assert [line.get_xydata().tolist() for line in axes.lines] == [
        [[0, 0], [5, 10], [10, 5]],
        [[5, 1]],
    ]
    assert [text.get_text() for text in axes.get_legend().texts] == ["a 5", "b 1"]
    assert axes.get_ylim()[0] == 0 and axes.get_xlim() == (0, 10)


def test_values_that_have_no_place_are_counted() -> None:
    rows = [{"step": s, "a": v} for s, v in enumerate([0.0, 1e-3, math.inf, 10.0, math.nan])]
    axes = drawn(Panel("t", ("a",), log=True), rows)
    assert axes.get_yscale() == "log"
    assert axes.lines[0].get_xydata().tolist() == [[1, 1e-3], [3, 10]]
    assert "3 values not drawable" in axes.get_legend().texts[0].get_text()
    assert drawn(Panel("t", ("a",)), rows[4:]) is None
