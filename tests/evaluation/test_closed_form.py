"""Probes without training: nearest neighbors and ridge against their definitions in fp64."""

import pytest
import torch
import torch.nn.functional as F

from vjepa_fast import closed_form
from vjepa_fast.closed_form import neighbor_values, neighbor_votes, ridge


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def clips():
    """Features, classes and values of 50 clips, and features of 13 others."""
    return draw(50, 8), torch.arange(50) % 3, draw(50, seed=1), draw(13, 8, seed=2)


def nearest_of(bank, query, k):
    cosine = F.cosine_similarity(bank.double(), query.double()[None])
    order = sorted(range(len(bank)), key=lambda i: -cosine[i].item())[:k]
    return order, cosine[order]


@pytest.mark.parametrize("k", [1, 5, 99])
@pytest.mark.parametrize("chunk", [2**24, 100, 1])
def test_neighbors(k, chunk, clips, monkeypatch):
    monkeypatch.setattr(closed_form, "_CHUNK", chunk)
    bank, classes, values, queries = clips
    votes = neighbor_votes(bank, classes, queries, num_classes=4, k=k)
    means = neighbor_values(bank, values, queries, k=k)
    assert votes.shape == (13, 4) and means.shape == (13,)
    for i, query in enumerate(queries):
        order, cosine = nearest_of(bank, query, k)
        weights = torch.softmax(cosine / 0.07, 0)
        expected = torch.stack([weights[classes[order] == c].sum() for c in range(4)])
        # A cosine's rounding error counts 1 / temperature times.
        torch.testing.assert_close(votes[i].double(), expected, rtol=0, atol=8 * 2**-23 / 0.07)
        torch.testing.assert_close(
            means[i].double(), values[order].double().mean(), rtol=0, atol=1e-6
        )


def test_neighbors_of_no_query(clips):
    bank, classes, values, queries = clips
    assert neighbor_votes(bank, classes, queries[:0], num_classes=3).shape == (0, 3)
    assert neighbor_values(bank, values, queries[:0]).shape == (0,)


def fit(x, y, penalty):
    """Ridge by its normal equations, with a free bias: predictions of a new clip by (w, b)."""
    x1 = torch.cat([x, torch.ones(len(x), 1).double()], 1)
    cost = torch.eye(x1.shape[1]).double() * penalty
    cost[-1, -1] = 0
    solved = torch.linalg.solve(x1.T @ x1 + cost, x1.T @ y)
    return solved[:-1], solved[-1]


@pytest.mark.parametrize("signal", [0.0, 0.3, 5.0])
@pytest.mark.parametrize("n", [12, 40])
def test_ridge_takes_the_best_penalty_by_leaving_out(n, signal):
    """n < D and n > D; the shortcut finds what refitting without each clip finds."""
    x = draw(n, 20) * torch.arange(1, 21) + 3
    y = signal * draw(20, 2, seed=3).T @ x.T / 10 + draw(2, n, seed=4)
    x, y = x.double(), y.T.double()
    z = (x - x.mean(0)) / x.std(0, correction=0)

    def error(penalty):
        total = 0.0
        for i in range(n):
            rest = torch.arange(n) != i
            weight, bias = fit(z[rest], y[rest], penalty)
            total += (y[i] - z[i] @ weight - bias).square().sum().item()
        return total

    best = min((n * 10.0**power for power in range(-4, 4)), key=error)
    weight, bias = fit(z, y, best)
    found_weight, found_bias = ridge(x, y)
    assert found_weight.dtype == torch.float64
    torch.testing.assert_close(
        x @ found_weight + found_bias, z @ weight + bias, rtol=1e-7, atol=1e-7
    )


@pytest.mark.parametrize("n", [30, 200])
def test_ridge_tells_classes_apart(n):
    classes = torch.arange(n) % 5
    features = F.one_hot(classes, 40).float() * 3 + draw(n, 40)
    weight, bias = ridge(features, F.one_hot(classes, 5))
    test = torch.arange(300) % 5
    found = (F.one_hot(test, 40) * 3 + draw(300, 40, seed=9)).double() @ weight + bias
    assert (found.argmax(1) == test).float().mean() > 0.5


@pytest.mark.parametrize("n", [10, 100])
def test_ridge_gives_a_constant_feature_no_weight(n):
    features, targets = draw(n, 16), draw(n, 1, seed=5)
    with_constant = torch.cat([features, torch.full((n, 1), 0.1)], 1)
    weight, bias = ridge(with_constant, targets)
    assert weight[-1].item() == 0
    alone, alone_bias = ridge(features, targets)
    torch.testing.assert_close(weight[:-1], alone)
    torch.testing.assert_close(bias, alone_bias)


@pytest.mark.parametrize("width", [3, 9])
def test_ridge_of_features_that_are_all_alike_is_the_mean(width):
    weight, bias = ridge(torch.full((6, width), 0.1), torch.arange(6.0)[:, None])
    assert weight.abs().max() == 0
    assert bias.item() == pytest.approx(2.5)
