"""The curves of curves.png and of the report: their coordinates, and values that are not drawn."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from vjepa_fast.training.monitoring.curves import PANELS, Panel, draw_curves, draw_panel


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


@pytest.mark.parametrize(
    ("values", "top", "ticks"),
    [([0, 0, 0], 1, [0, 1]), ([0], 1, [0, 1]), ([0, 1, 1], 1.05, [0, 1]), ([0, 2], 2.1, [0, 1, 2])],
)
def test_a_count_begins_at_zero_and_is_whole(
    values: list[int], top: float, ticks: list[int]
) -> None:
    """A run that skipped no step has its line at zero, at the foot of 0 to 1."""
    (panel,) = [panel for panel in PANELS if panel.names == ("skipped_steps",)]
    axes = drawn(panel, [{"step": s, "skipped_steps": v} for s, v in enumerate(values)])
    low, high = axes.get_ylim()
    assert low == 0 and high == pytest.approx(top)
    assert [tick for tick in axes.get_yticks() if tick <= high] == ticks


@pytest.mark.parametrize("panel", [p for p in PANELS if p.from_zero and not p.log])
def test_a_panel_of_zeros_has_nothing_below_zero(panel: Panel) -> None:
    rows = [{"step": s, **dict.fromkeys(panel.names, 0.0)} for s in range(3)]
    assert drawn(panel, rows).get_ylim() == (0, 1)


def test_values_that_have_no_place_are_counted() -> None:
    rows = [{"step": s, "a": v} for s, v in enumerate([0.0, 1e-3, math.inf, 10.0, math.nan])]
    axes = drawn(Panel("t", ("a",), log=True), rows)
    assert axes.get_yscale() == "log"
    assert axes.lines[0].get_xydata().tolist() == [[1, 1e-3], [3, 10]]
    assert "3 values not drawable" in axes.get_legend().texts[0].get_text()
    assert drawn(Panel("t", ("a",)), rows[4:]) is None


def test_the_best_probe_is_marked_and_has_a_place_in_the_overview(tmp_path: Path) -> None:
    """Steps in metrics count from 0, in the legend and in checkpoints from 1."""
    (panel,) = [panel for panel in PANELS if panel.best]
    rows = [{"step": s, "probe_r2": v} for s, v in ((9, -0.5), (19, 0.5), (29, 0.5), (39, 0.25))]
    axes = drawn(panel, rows)
    assert [line.get_xydata().tolist() for line in axes.lines] == [
        [[19, 0.5]],
        [[9, -0.5], [19, 0.5], [29, 0.5], [39, 0.25]],
    ]
    ring, line = axes.lines
    assert not ring.get_clip_on() and line.get_clip_on()  # the last step is the axes' edge
    assert axes.get_legend().texts[0].get_text() == "probe_r2 0.25, best 0.5 after 20 steps"
    assert axes.get_ylim()[0] < -0.5
    sizes = []
    for found in (rows[:0], rows):
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
        with Image.open(draw_curves(tmp_path)) as picture:
            sizes.append(picture.size)
    assert sizes[1][0] > 1.3 * sizes[0][0] and sizes[0][1] == sizes[1][1]
