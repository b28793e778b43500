"""The pixel objective: its loss and gradient in closed form, and the width of its predictions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.helpers.trainers import GRID, make_model, micro_batch
from tests.rounding.accuracy import ROUNDING
from vjepa_fast.models.jepa import pixel_loss

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
EPS = 1e-5  # added to the variance


def normalized_patches(video: np.ndarray) -> np.ndarray:
    """The target of every token of uint8 [B, T, H, W, 3], float64 [B, N, 3 · 2 · 8 · 8]."""
    frames, height, width = GRID
    colors = (video / 255 - MEAN) / STD
    tokens = colors.reshape(len(video), frames, 2, height, 8, width, 8, 3)
    tokens = tokens.transpose(0, 1, 3, 5, 7, 2, 4, 6)  # channel, frame, line, column last
    tokens = tokens.reshape(len(video), frames * height * width, -1)
    centered = tokens - tokens.mean(-1, keepdims=True)
    return centered / np.sqrt((centered**2).mean(-1, keepdims=True) + EPS)


def closed_form(prediction: np.ndarray, video: np.ndarray, masks) -> tuple[float, np.ndarray]:
    """Mean over specs of the mean over clips of the mean squared error; its gradient."""
    targets = normalized_patches(video).reshape(-1, prediction.shape[1])
    difference = prediction - targets[masks.target_rows.numpy()]
    counts = masks.target_seqlens.numpy()
    weight = np.repeat(1 / (len(counts) * counts * prediction.shape[1]), counts)[:, None]
    return float((weight * difference**2).sum()), 2 * weight * difference


@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0])
def test_loss_and_gradient_are_the_closed_form(scale: float) -> None:
    model = make_model(objective="pixels")
    video, masks = micro_batch(0)
    video[0, :2] = 90  # gray patches, whose three normalized colors differ
    rows, width = len(masks.target_rows), 3 * 2 * 8 * 8
    prediction = scale * torch.randn(rows, width, generator=torch.Generator().manual_seed(1))
    prediction.requires_grad_()
    loss = pixel_loss(prediction, video, masks, model.encoder.patch_embed)
    (gradient,) = torch.autograd.grad(loss, prediction)
    exact, slope = closed_form(prediction.detach().double().numpy(), video.numpy(), masks)
    assert loss.dtype == torch.float32
    # Normalized pixels are of order 1 and have an error of some roundings of 255 gray levels.
    size = 1 + scale
    assert loss.item() == pytest.approx(exact, rel=64 * ROUNDING)
    limit = 64 * ROUNDING * size * np.abs(slope).max()
    assert np.abs(gradient.double().numpy() - slope).max() <= limit


def test_the_right_pixels_have_no_loss_and_zeros_have_the_variance() -> None:
    model = make_model(objective="pixels")
    video, masks = micro_batch(1)
    targets = normalized_patches(video.numpy()).reshape(-1, 3 * 2 * 8 * 8)
    right = torch.from_numpy(targets[masks.target_rows.numpy()]).float()
    patches = model.encoder.patch_embed
    assert pixel_loss(right, video, masks, patches).item() < (64 * ROUNDING) ** 2
    nothing = pixel_loss(torch.zeros_like(right), video, masks, patches).item()
    assert nothing == pytest.approx(1.0, rel=1e-3)  # a variance of 1 but for EPS


def test_the_model_predicts_patches_and_is_else_the_same() -> None:
    pixels, features = make_model(objective="pixels"), make_model()
    video, masks = micro_batch(0)
    assert pixels(video, masks).shape == (len(masks.target_rows), 3 * 2 * 8 * 8)
    own, other = pixels.state_dict(), features.state_dict()
    ends = {"predictor.proj.weight", "predictor.proj.bias"}
    assert {n for n in own if own[n].shape != other[n].shape} == ends
    assert all(torch.equal(own[n], other[n]) for n in own if n.startswith("encoder."))
