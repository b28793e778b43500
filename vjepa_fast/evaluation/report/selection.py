"""Chooses the best head of each draw on validation, and sums up its test results."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict

from vjepa_fast.evaluation.heads.spec import HeadSpec
from vjepa_fast.evaluation.results import Scores, mean_and_std


def main_score(scores: Scores) -> float:
    """What heads are compared by: top-1 accuracy, or R² of values; NaN is worst."""
    found = scores["top1" if "top1" in scores else "r2"]
    return -math.inf if math.isnan(found) else found


def best_heads(
    specs: Sequence[HeadSpec],
    validation: Sequence[Scores | None] | None,
    test: Sequence[Scores | None],
) -> dict[tuple[str, float], list[int]]:
    """The head with the best validation score of each draw, the first of equals.

    Args:
        specs: the heads.
        validation: their scores; None where a draw has one head.
        test: their scores; None of a head that has learned from no video, whose draw is left out.

    Returns:
        by (target, share), the chosen head of each draw, in the order of draws.
    """
    of_draw = defaultdict(list)
    for index, spec in enumerate(specs):
        if test[index] is not None:
            of_draw[spec.target, spec.share, spec.draw].append(index)
    best = defaultdict(list)
    for (target, share, _), heads in sorted(of_draw.items(), key=lambda item: item[1][0]):
        if validation is None and len(heads) > 1:
            raise ValueError(f"validation: found none for {len(heads)} heads, expected scores")
        chosen = max(heads, key=lambda i: main_score(validation[i])) if validation else heads[0]
        best[target, share].append(chosen)
    return dict(best)


def summary(
    specs: Sequence[HeadSpec],
    validation: Sequence[Scores | None] | None,
    test: Sequence[Scores | None],
) -> list[dict]:
    """The chosen heads' test results, as JSON data: one row for each target and share.

    Returns:
        rows of label, share, "draws": [{lr, weight_decay, validation, test}] and "test": {score:
        {"mean", "std"}}, the sample standard deviation over draws, null for one draw.
    """
    rows = []
    for (target, share), heads in best_heads(specs, validation, test).items():
        draws = [
            {
                "draw": specs[i].draw,
                "lr": specs[i].lr,
                "weight_decay": specs[i].weight_decay,
                "validation": dict(validation[i]) if validation else None,
                "test": dict(test[i]),
            }
            for i in heads
        ]
        scores = {}
        for name in test[heads[0]]:
            mean, std = mean_and_std([test[i][name] for i in heads])
            scores[name] = {"mean": mean, "std": None if math.isnan(std) else std}
        rows.append({"label": target, "share": share, "test": scores, "draws": draws})
    return rows


def whole_grid(
    specs: Sequence[HeadSpec],
    validation: Sequence[Scores | None] | None,
    test: Sequence[Scores | None],
    losses: Sequence[float],
) -> list[dict]:
    """Every head with its scores, as JSON data; a loss that is not finite is null, and so are the
    scores of a head that has learned from no video.
    """
    return [
        asdict(spec)
        | {
            "loss": loss if math.isfinite(loss) else None,
            "validation": dict(validation[i]) if validation and validation[i] else None,
            "test": dict(test[i]) if test[i] else None,
        }
        for i, (spec, loss) in enumerate(zip(specs, losses, strict=True))
    ]
