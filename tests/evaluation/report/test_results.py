"""Figures of merit, against plain forms and scikit-learn."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    balanced_accuracy_score,
    mean_absolute_error,
    r2_score,
    top_k_accuracy_score,
)
from sklearn.metrics import (
    confusion_matrix as sklearn_confusion,
)

from vjepa_fast.evaluation.results import (
    class_scores,
    confusion_matrix,
    mean_and_std,
    rank_of_truth,
    value_scores,
)


def test_accuracies_are_those_of_scikit_learn():
    random = torch.Generator().manual_seed(0)
    scores, truth = torch.randn(300, 9, generator=random), torch.arange(300) % 9
    scores[torch.arange(300), truth] += 1.0
    found = class_scores(rank_of_truth(scores, truth), truth, 9)
    guesses = scores.argmax(1)
    assert found["top1"] == pytest.approx((guesses == truth).double().mean().item())
    assert found["top5"] == pytest.approx(top_k_accuracy_score(truth, scores, k=5))
    assert found["per_class"] == pytest.approx(balanced_accuracy_score(truth, guesses))
    expected = sklearn_confusion(truth, guesses)
    assert np.array_equal(confusion_matrix(guesses, truth, 9).numpy(), expected)


def test_several_heads_at_once():
    scores, truth = torch.randn(4, 20, 7), torch.arange(20) % 7
    alone = torch.stack([rank_of_truth(head, truth) for head in scores])
    assert torch.equal(rank_of_truth(scores, truth), alone)


def test_what_counts_as_wrong():
    scores = torch.tensor([[0.0, 1.0], [math.nan, 1.0], [1.0, 1.0], [1.0, 1.0], [1.0, 0.0]])
    truth = torch.tensor([-1, 1, 0, 1, 0])
    ranks = rank_of_truth(scores, truth)
    assert ranks.tolist() == [2, 2, 0, 1, 0]  # ties go to the first class, as argmax has it
    found = class_scores(ranks, truth, 2)
    assert found == {"top1": 2 / 5, "per_class": pytest.approx((0 + 1 + 0) / 3)}
    assert confusion_matrix(torch.tensor([1, 1, 0, 0, 0]), truth, 2).tolist() == [[2, 0], [1, 1]]


def test_unbalanced_classes_count_alike():
    truth = torch.tensor([0] * 8 + [1] * 2)
    found = class_scores(torch.tensor([0] * 8 + [1] * 2), truth, 2)
    assert found["top1"] == 0.8 and found["per_class"] == 0.5


def test_errors_of_values_are_those_of_scikit_learn():
    random = torch.Generator().manual_seed(0)
    truth = torch.randn(50, generator=random).double()
    predicted = truth + 0.3 * torch.randn(50, generator=random)
    found = value_scores(predicted, truth)
    assert found["mae"] == pytest.approx(mean_absolute_error(truth, predicted))
    assert found["r2"] == pytest.approx(r2_score(truth, predicted))
    assert math.isnan(value_scores(predicted, torch.ones(50))["r2"])


def test_mean_and_std():
    assert mean_and_std([0.5, 0.6, 0.7]) == (pytest.approx(0.6), pytest.approx(0.1))
    assert mean_and_std([0.5])[0] == 0.5 and math.isnan(mean_and_std([0.5])[1])
