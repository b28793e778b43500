"""The result of a probe as a text table."""

from __future__ import annotations

from collections.abc import Mapping

from vjepa_fast.commands.terminal import text_table

SCORES = {
    "top1": "top-1",
    "top5": "top-5",
    "per_class": "per class",
    "mae": "mean abs. error",
    "r2": "R²",
}


def probe_table(result: Mapping) -> str:
    """A line on how it was probed, then for each label and share of labels the test scores of every
    kind of features, and what is left out.

    Args:
        result: the content of probe.json.
    """
    lines = [_title(result)]
    for label, target in result["targets"].items():
        own = [row for row in result["results"] if row["label"] == label]
        names = list(own[0]["test"])
        rows = [(label, "labels", *(SCORES[name] for name in names))]
        for row in own:
            cells = [_cell(row["test"][name]) for name in names]
            rows.append((row["features"], f"{100 * row['share']:g} %", *cells))
        rows.append((*_guess(label, target, result), *[""] * (len(names) - 1)))
        lines += ["", text_table(rows)]
        if absent := target.get("not_in_test"):
            lines.append(f"no test videos of {', '.join(absent)}")
    for split, videos in result["videos"].items():
        if left_out := len(videos["left_out"]):
            count = videos["videos"]
            lines += ["", f"left out: {left_out} of {count} {split} videos, which do not decode"]
    return "\n".join(lines)


def _title(result: Mapping) -> str:
    kind = {"linear": "linear probe on mean features", "knn": "nearest neighbors by mean features"}
    blocks = result["blocks"]
    attentive = f"attentive probe of {blocks} block{'s' * (blocks > 1)}"
    title = f"{kind.get(result['probe'], attentive)}, step {result['step']}"
    if result["segments"] * result["crops"] > 1:
        title += f", {result['segments']} segments x {result['crops']} crops"
    if min(result["label_shares"]) < 1:
        title += f"; labels drawn {result['draws']} times, {result['drawn']}: mean ± std"
    return title


def _cell(score: Mapping[str, float | None]) -> str:
    if score["mean"] is None:
        return "-"
    text = f"{score['mean']:.3f}"
    return text if score["std"] is None else f"{text} ± {score['std']:.3f}"


def _guess(label: str, target: Mapping, result: Mapping) -> tuple[str, str, str]:
    """What the best constant guess scores."""
    if "classes" in target:
        return "most frequent class", "", f"{result['chance'][label]:.3f}"
    return "median value", "", f"{target['error_of_median']:.3f}"
