"""Line charts as SVG, in colours that the page's style sheet gives for light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 460, 230
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 12, 26
BINS = 300  # of a curve; each keeps its smallest and its largest value
COLOURS = 7  # --c0 … in the page's style sheet

Points = Sequence[tuple[float, float]]


def thinned(points: Points) -> Points:
    """At most 2 · `BINS` points that still show every spike."""
    if len(points) <= 2 * BINS:
        return points
    kept = []
    for i in range(BINS):
        part = points[len(points) * i // BINS : len(points) * (i + 1) // BINS]
        kept += sorted({min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])})
    return kept


def ticks(low: float, high: float) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) that cover a range; three to eight."""
    step = 10 ** math.floor(math.log10((high - low) / 3))
    step *= next(f for f in (5, 2, 1) if f == 1 or (high - low) / (f * step) >= 3)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def powers(low: float, high: float) -> list[float]:
    """Powers of ten that cover a range of positive numbers, nine at most."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    last = max(last, first + 1)
    stride = 1 + (last - first) // 8
    return [10.0**e for e in range(first, last + stride, stride)]


def number(value: float) -> str:
    """A number as short as it stays exact to three or four digits."""
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        return f"{value:.4g}"
    return f"{value:.2g}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")


def line_chart(
    title: str,
    series: dict[str, Points],
    *,
    last_step: int = 0,
    log: bool = False,
    zero: bool = False,
) -> str:
    """A figure with curves over the step and their last values; empty without any point.

    Args:
        title: above it.
        series: (step, value) by name. What is not finite is left out and counted; with `log` so is
            what is not positive.
        last_step: to which the axis goes at least, from 0.
        log: whether the value's axis is logarithmic.
        zero: whether the value's axis begins at zero.
    """
    shown, lost = {}, 0
    for name, points in series.items():
        good = [(s, v) for s, v in points if math.isfinite(v) and (v > 0 or not log)]
        lost += len(points) - len(good)
        if good:
            shown[name] = good
    if not shown:
        return ""
    steps = {s for points in shown.values() for s, _ in points}
    values = [v for points in shown.values() for _, v in points]
    low, high = min(values), max(values)
    if zero:
        low = min(low, 0.0)
    if high - low <= 1e-9 * max(abs(high), abs(low), 1e-30):  # flat
        margin = abs(high) / 2 or 1.0
        low, high = low - margin * (not log), high + margin
    marks = powers(low, high) if log else ticks(low, high)
    last = max(last_step, *steps, 1)

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / last

    def y(value: float) -> float:
        bottom, top = (math.log(marks[0]), math.log(marks[-1])) if log else (marks[0], marks[-1])
        share = ((math.log(value) if log else value) - bottom) / (top - bottom)
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - min(max(share, 0.0), 1.0))

    parts = []
    for mark in marks:
        at = f"{y(mark):.1f}"
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at}" dy="4" class="end">{number(mark)}</text>')
    for mark in ticks(0, last):
        if mark <= last:
            at = f"{x(mark):.1f}"
            parts.append(f'<text x="{at}" y="{HEIGHT - 8}" class="mid">{number(mark)}</text>')
    legend = []
    for i, (name, points) in enumerate(shown.items()):
        colour = f"var(--c{i % COLOURS})"
        path = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in thinned(points))
        parts.append(f'<polyline points="{path}" style="stroke:{colour}"/>')
        s, v = points[-1]
        parts.append(f'<circle cx="{x(s):.1f}" cy="{y(v):.1f}" r="2.5" style="fill:{colour}"/>')
        legend.append(
            f'<span><i style="background:{colour}"></i>{escape(name)} <b>{number(v)}</b></span>'
        )
    note = f'<span class="bad">{lost} values not drawable</span>' if lost else ""
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
        f'<div class="legend">{"".join(legend)}{note}</div></figure>'
    )


def share_bar(shares: dict[str, float], unit: str) -> str:
    """One bar cut into its parts' shares, with a legend; empty if all are zero."""
    whole = sum(shares.values())
    if whole <= 0:
        return ""
    pieces = "".join(
        f'<i style="width:{100 * value / whole:.2f}%;background:var(--c{i % COLOURS})"></i>'
        for i, value in enumerate(shares.values())
    )
    legend = "".join(
        f'<span><i style="background:var(--c{i % COLOURS})"></i>{escape(name)} '
        f"<b>{number(value)} {escape(unit)}</b> {value / whole:.0%}</span>"
        for i, (name, value) in enumerate(shares.items())
    )
    return f'<div class="bar">{pieces}</div><div class="legend">{legend}</div>'
