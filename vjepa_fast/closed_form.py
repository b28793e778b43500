"""Probes without training, on one feature vector per clip: k nearest neighbors and ridge.

Nearest neighbors vote as in DINO (arXiv 2104.14294, section 4.1 and its public protocol).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_CHUNK = 2**24  # similarities held at a time (64 MiB)
# Ridge penalties per clip; standardized features have a mean square of 1.
_PENALTIES = [10.0**power for power in range(-4, 4)]


def neighbor_votes(
    bank: Tensor,
    classes: Tensor,
    queries: Tensor,
    *,
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
) -> Tensor:
    """Votes of each query's k nearest neighbors, weighted by softmax(cosine / temperature).

    Args:
        bank: features of labeled clips, [n, D] of any float dtype. With n < k, all of them vote.
        classes: int64 [n], in 0 … num_classes - 1.
        queries: features [m, D].
        num_classes: number of classes.
        k: number of neighbors.
        temperature: of the softmax over the neighbors.

    Returns:
        fp32 [m, num_classes]; each row sums to 1.
    """
    votes = []
    for cosine, nearest in _nearest(bank, queries, k):
        weights = torch.softmax(cosine / temperature, 1)
        chosen = F.one_hot(classes[nearest], num_classes).float()  # [m, k, C]
        votes.append((weights.unsqueeze(1) @ chosen).squeeze(1))  # scatter_add varies on a GPU
    return torch.cat(votes) if votes else queries.new_zeros(0, num_classes, dtype=torch.float32)


def neighbor_values(bank: Tensor, values: Tensor, queries: Tensor, *, k: int = 20) -> Tensor:
    """The mean value of each query's k nearest neighbors by cosine.

    Args:
        bank: features [n, D] of any float dtype. With n < k, all of them count.
        values: float [n].
        queries: features [m, D].
        k: number of neighbors.

    Returns:
        fp32 [m].
    """
    means = [values[nearest].float().mean(1) for _, nearest in _nearest(bank, queries, k)]
    return torch.cat(means) if means else queries.new_zeros(0, dtype=torch.float32)


def _nearest(bank: Tensor, queries: Tensor, k: int) -> list[tuple[Tensor, Tensor]]:
    """Cosines fp32 and numbers int64 of the nearest rows of the bank, [chunk, min(k, n)] each."""
    bank = F.normalize(bank.float(), dim=1)
    rows = max(1, _CHUNK // len(bank))
    return [
        torch.topk(F.normalize(chunk.float(), dim=1) @ bank.T, min(k, len(bank)), dim=1)
        for chunk in queries.split(rows)
        if len(chunk)
    ]


def ridge(features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Least squares with an L2 penalty on the weights of standardized features, in fp64.

    The penalty is the one of 1e-4, 1e-3 … 1e3 (times n) with the least squared error on clips left
    out one at a time, which has a closed form. For classes, targets are one-hot and the largest
    prediction counts; constant features get no weight.

    Args:
        features: [n, D] of any float dtype, n of at least 2.
        targets: [n, C] of any dtype.

    Returns:
        weight fp64 [D, C] and bias fp64 [C]: `features.double() @ weight + bias` predicts.
    """
    x, y = features.double(), targets.double()
    n, width = x.shape
    mean, mean_y = x.mean(0), y.mean(0)
    scale = x.std(0, correction=0)
    constant = scale <= torch.finfo(torch.float32).eps * mean.abs()
    scale = torch.where(constant, torch.inf, scale)
    x, y = (x - mean) / scale, y - mean_y
    # By x = u s vᵀ and the smaller Gram matrix: predictions are a diag(1 / (s² + penalty)) bᵀ y,
    # and weights are c diag(1 / (s² + penalty)) bᵀ y.
    if n >= width:
        squares, v = torch.linalg.eigh(x.T @ x)
        a, b, c = x @ v, x @ v, v
    else:
        squares, u = torch.linalg.eigh(x @ x.T)
        a, b, c = u * squares, u, x.T @ u
    moments = b.T @ y  # [min(n, D), C]
    best, least = moments, torch.inf
    for penalty in _PENALTIES:
        shrunk = 1 / (squares.clamp(min=0) + penalty * n).unsqueeze(1)
        influence = 1 / n + (a * b) @ shrunk  # of a clip's target on its own prediction
        left_out = (y - a @ (shrunk * moments)) / (1 - influence)
        error = float(left_out.square().mean())
        if error < least:
            best, least = shrunk * moments, error
    weight = (c @ best) / scale.unsqueeze(1)
    return weight, mean_y - mean @ weight
