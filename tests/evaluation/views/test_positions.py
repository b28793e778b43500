"""Frame numbers as features: the published code's, on every token of a tubelet."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from vjepa_fast.data.manifest.entries import Entries
from vjepa_fast.evaluation.views.plan import ViewPlan
from vjepa_fast.evaluation.views.positions import FramePositions
from vjepa_fast.evaluation.views.stream import StreamedFeatures
from vjepa_fast.inference.clips import Sampling


def code(number: int, width: int) -> list[float]:
    """Of one frame number: sines, then cosines. The public code's `ClipAggregation` adds these."""
    angles = [number / 10000 ** (2 * k / width) for k in range(width // 2)]
    return [*map(math.sin, angles), *map(math.cos, angles)]


def test_each_token_gets_the_code_of_its_tubelet_s_first_frame() -> None:
    frames = torch.tensor([[[3, 5, 7, 8], [13, 15, 17, 18]], [[0, 1, 2, 3], [40, 40, 40, 40]]])
    tokens = torch.randn(2, 3, 2 * 2 * 5, 12, generator=torch.Generator().manual_seed(0))
    added = (FramePositions(2)(tokens, frames) - tokens).view(2, 3, 4, 5, 12)
    first = [[3, 7, 13, 17], [0, 2, 40, 40]]
    expected = torch.tensor([[code(number, 12) for number in video] for video in first])
    # The sum and the difference round once each, at numbers below 8.
    assert torch.allclose(added, expected[:, None, :, None], rtol=0, atol=2 * 8 * 2**-24)


def test_streamed_features_have_them(
    entries: Entries, views_of: Callable, tubelets: Callable
) -> None:
    plan = ViewPlan(Sampling(4, 16, 1), segments=2, crops=3)
    views, order = views_of(entries, plan), [(0, np.array([4, 0]))]
    (without,) = StreamedFeatures(lambda video: tubelets(video)[..., :2], views).batches(order)
    positions = FramePositions(2)
    told = StreamedFeatures(lambda video: tubelets(video)[..., :2], views, positions=positions)
    (found,) = told.batches(order)
    (decoded,) = views.batches(order)
    assert torch.equal(found.tokens, positions(without.tokens, decoded.frames))
    assert not torch.equal(found.tokens, without.tokens)
    assert told.settings["frame_positions"] == 2
