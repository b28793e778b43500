"""Training written out in any dtype: in float64 what a run should find, in fp32 how near it comes.

The loss is one of squares. The slope of |z - y| jumps where rounding turns its sign, and AdamW
would amplify that from step to step; with squares a step changes by roundings of itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import chain

import torch
from torch import Tensor

from tests.rounding.accuracy import ROUNDING
from vjepa_fast.config import Config
from vjepa_fast.config.model import build_model
from vjepa_fast.models.jepa import VJEPA, Objective, encode_clips, feature_loss, pixel_loss
from vjepa_fast.models.sequences import PackedMasks
from vjepa_fast.training.batches import Batches
from vjepa_fast.training.schedules import Schedules, make_schedules

SQUARES = {"loss_exponent": 2.0}
ITEMS = ("loss", "grad_norm_encoder", "grad_norm_predictor")


def train_plainly(
    model: VJEPA,
    schedules: Schedules,
    batches: Iterable[Iterable[tuple[Tensor, PackedMasks]]],
    clip_grad: float | None,
    objective: Objective = "features",
) -> tuple[list[list[float]], dict[str, Tensor]]:
    """Without DeepSpeed and without code of training/ but schedules: AdamW (Loshchilov and Hutter,
    algorithm 2), clipping, EMA written out.

    Args:
        model: with its initial weights, in the dtype to compute in; trained in place.
        schedules: learning rate, weight decay and momentum by step.
        batches: the micro-batches of each step.
        clip_grad: largest norm of the gradient of each part.
        objective: what the model predicts.

    Returns:
        `ITEMS` of each step; the final weights.
    """
    teacher, own = model.make_target_encoder(), dict(model.named_parameters())
    means = {name: torch.zeros_like(p) for name, p in own.items()}
    squares = {name: torch.zeros_like(p) for name, p in own.items()}
    found = []
    for step, batch in enumerate(batches):
        pairs, losses = list(batch), []
        for video, masks in pairs:
            prediction = model(video, masks)
            if objective == "pixels":
                loss = pixel_loss(prediction, video, masks, model.encoder.patch_embed)
            else:
                with torch.no_grad():
                    targets = encode_clips(teacher, video)
                loss = feature_loss(prediction, targets, masks, SQUARES["loss_exponent"])
            (loss / len(pairs)).backward()
            losses.append(loss.item())
        norms = []
        for part in (model.encoder, model.predictor):
            gradients = [p.grad for p in part.parameters()]
            flat = torch.cat([g.flatten() for g in gradients])
            norms.append(flat.norm().item())  # one long sum, as of an offloaded shard
            for g in gradients if clip_grad is not None else []:
                g.mul_(min(1.0, clip_grad / (norms[-1] + 1e-6)))
        found.append([sum(losses) / len(losses), *norms])
        lr, momentum = schedules.lr(step), schedules.momentum(step)
        with torch.no_grad():
            for name, p in own.items():
                means[name] = 0.9 * means[name] + 0.1 * p.grad
                squares[name] = 0.999 * squares[name] + 0.001 * p.grad**2
                if p.ndim > 1:
                    p -= lr * schedules.weight_decay(step) * p
                root = (squares[name] / (1 - 0.999 ** (step + 1))).sqrt()
                p -= lr * means[name] / (1 - 0.9 ** (step + 1)) / (root + 1e-8)
                p.grad = None
            for target, p in zip(teacher.parameters(), model.encoder.parameters(), strict=True):
                target.copy_(momentum * target + (1 - momentum) * p)
    return found, {name: p.detach() for name, p in own.items()}


def plain_run(config: Config, dtype: torch.dtype) -> list[list[float]]:
    """`ITEMS` of each step of a run from its initial weights, in one process."""
    assert config.optim.loss_exponent == SQUARES["loss_exponent"]
    batches = Batches(config, 0, 1)
    with batches.loader(0, torch.device("cpu")) as clips:
        steps = (batches.step(step, clips) for step in range(config.optim.steps))
        model = build_model(config).to(dtype)
        return train_plainly(model, make_schedules(config), steps, config.optim.clip_grad)[0]


def largest_errors(found: list[list[float]], exact: list[list[float]]) -> list[float]:
    """The largest relative error of each column, all of which are finite."""
    rows = zip(found, exact, strict=True)
    errors = [[abs(f / e - 1) for f, e in zip(*row, strict=True)] for row in rows]
    assert all(map(math.isfinite, chain(*errors))), errors  # `max` may drop a NaN
    return [max(column) for column in zip(*errors, strict=True)]


def assert_near(
    found: list[list[float]], plain: list[list[float]], exact: list[list[float]]
) -> None:
    """In each column at most twice the largest error of `plain`, and 16 roundings."""
    errors = largest_errors(found, exact)
    limits = [2 * error + 16 * ROUNDING for error in largest_errors(plain, exact)]
    assert all(f <= limit for f, limit in zip(errors, limits, strict=True)), (errors, limits)
