"""Figures of merit of predictions: accuracies, errors, mean over draws; and how files hold them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Scores = Mapping[str, float]


def rank_of_truth(scores: Tensor, truth: Tensor) -> Tensor:
    """How many classes score higher than the true one, or as high and come first.

    Args:
        scores: logits or probabilities [..., n, C].
        truth: classes, int64 [n]; -1 is a class that is not among the C.

    Returns:
        int64 [..., n]: 0 is a right guess, below 5 counts for top-5; C where truth is -1 or where
        a score is NaN.
    """
    count = scores.shape[-1]
    known = truth.clamp(min=0).expand(scores.shape[:-1])[..., None]
    own = scores.gather(-1, known)
    earlier = torch.arange(count, device=scores.device) < known
    rank = ((scores > own) | ((scores == own) & earlier)).sum(-1)
    wrong = (truth < 0) | scores.isnan().any(-1)
    return torch.where(wrong, count, rank)


def class_scores(ranks: Tensor, truth: Tensor, num_classes: int) -> dict[str, float]:
    """Accuracies of predictions.

    Args:
        ranks: `rank_of_truth` of each video, int64 [n], n > 0.
        truth: classes, int64 [n]; -1 counts as wrong.
        num_classes: C.

    Returns:
        "top1"; "top5", where there are more than 5 classes; "per_class": the mean over the classes
        that occur of the top-1 accuracy within each, where -1 is one class. All in 0 … 1.
    """
    right = (ranks == 0).double()
    classes, index = truth.unique(return_inverse=True)
    own = torch.zeros(len(classes), dtype=torch.float64, device=ranks.device)
    own = own.index_add(0, index, right) / index.bincount(minlength=len(classes))
    found = {"top1": right.mean().item()}
    if num_classes > 5:
        found["top5"] = (ranks < 5).double().mean().item()
    return found | {"per_class": own.mean().item()}


def value_scores(predicted: Tensor, truth: Tensor) -> dict[str, float]:
    """Errors of predicted values.

    Args:
        predicted, truth: in the unit of the column, [n], n > 0.

    Returns:
        "mae": mean absolute error; "r2": the explained fraction of the variance of `truth`, 1 at
        best, NaN where all of it is one value.
    """
    predicted, truth = predicted.double(), truth.double()
    variance = (truth - truth.mean()).square().mean().item()
    error = (predicted - truth).square().mean().item()
    return {
        "mae": (predicted - truth).abs().mean().item(),
        "r2": 1 - error / variance if variance > 0 else math.nan,
    }


def confusion_matrix(guesses: Tensor, truth: Tensor, num_classes: int) -> Tensor:
    """How often each class (row) was taken for each (column).

    Args:
        guesses, truth: classes, int64 [n]; videos with a truth of -1 are not counted.
        num_classes: C.

    Returns:
        int64 [C, C].
    """
    known = truth >= 0
    pairs = truth[known] * num_classes + guesses[known]
    return pairs.bincount(minlength=num_classes**2).view(num_classes, num_classes)


def mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (n - 1), which is NaN for one value."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))


def json_data(value: object) -> object:
    """JSON data, in which a number that is not finite is null."""
    if isinstance(value, dict):
        return {key: json_data(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_data(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
