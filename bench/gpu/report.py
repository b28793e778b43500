"""The report of bench/gpu_check.py, as Markdown and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpu.run_part import Outcome

SHOWN = 12  # lines of a failed part's log


def headline(outcomes: Sequence[Outcome]) -> str:
    """The number of parts by outcome."""
    states = [outcome.status for outcome in outcomes]
    kinds = ("passed", "failed", "timed out", "left out")
    return ", ".join(f"{states.count(kind)} {kind}" for kind in kinds if kind in states)


def markdown(outcomes: Sequence[Outcome], device: str, seconds: float) -> str:
    """The Markdown report.

    Args:
        device: "cuda", or "cpu" for a rehearsal, whose figures mean nothing.
        seconds: duration of the whole check.
    """
    title = "GPU check" if device == "cuda" else "GPU check, rehearsed on a CPU at tiny sizes"
    text = [f"# {title}", "", f"{headline(outcomes)}; {seconds:.0f} s in total.", ""]
    text += ["| part | outcome | seconds |", "|---|---|---|"]
    for outcome in outcomes:
        status = f"**{outcome.status}**" if outcome.bad else outcome.status
        text.append(f"| {outcome.title} | {status} | {outcome.seconds:.0f} |")
    for outcome in outcomes:
        text += ["", f"## {outcome.title}", ""]
        if outcome.why:
            text += [f"{outcome.status}: {outcome.why}", ""]
        text += [f"- {line}" for line in outcome.lines]
        if outcome.log:
            text += ["```", *outcome.log[-SHOWN:], "```"]
    return "\n".join(text) + "\n"


def as_json(outcomes: Sequence[Outcome], device: str, seconds: float) -> dict[str, Any]:
    """All figures, and the last log lines of parts that failed."""
    parts = {outcome.name: vars(outcome) for outcome in outcomes}
    return {"device": device, "seconds": seconds, "outcome": headline(outcomes), "parts": parts}
