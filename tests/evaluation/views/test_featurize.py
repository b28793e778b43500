"""Pixels as features: their principal components, and the files that processes share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vjepa_fast.data.manifest.entries import Entries, entries_of
from vjepa_fast.data.manifest.files import read_manifest
from vjepa_fast.errors import UserError
from vjepa_fast.evaluation.views import featurize
from vjepa_fast.evaluation.views.featurize import pixel_features
from vjepa_fast.evaluation.views.plan import ViewPlan
from vjepa_fast.inference.clips import Sampling
from vjepa_fast.kernels import patchify

SIZES = {"patch_size": 4, "tubelet_size": 2}  # 96 values of a token
PLAN = ViewPlan(Sampling(4, 16, 1))


@pytest.mark.parametrize("width", [10, 100])
def test_the_components_hold_the_largest_variance(
    entries: Entries, views_of: Callable, width: int
) -> None:
    """Judged by the singular values of the same tokens, in fp64."""
    views = views_of(entries, PLAN)
    found = pixel_features(views, width=width, **SIZES)
    (batch,) = views.batches([(0, np.arange(16))])
    video = batch.video.flatten(0, 2)
    features = found(video)
    assert features.shape == (16, 32, width)
    pixels = patchify(video, **SIZES).double()
    values = torch.linalg.svdvals(pixels - pixels.mean(0)) ** 2 / len(pixels)
    kept = min(width, 96)
    assert found.variance == pytest.approx(float(values[:kept].sum() / values.sum()), rel=1e-9)
    flat = features.double().flatten(0, 1)
    # fp32 pixels of size 2.7 at most, 96 of them summed: rounding is far below 1e-4.
    assert torch.allclose(flat.mean(0), torch.zeros(width).double(), atol=1e-4)
    spread = flat[:, :kept].T @ flat[:, :kept] / len(flat)
    assert torch.allclose(spread, torch.diag(values[:kept]), atol=1e-4 * float(values[0]))
    assert (flat[:, kept:] == 0).all()
    largest = found.directions.gather(0, found.directions.abs().argmax(0, keepdim=True))
    assert (largest > 0).all()


def test_the_sample_is_bounded_and_even(
    entries: Entries, views_of: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(featurize, "_VIDEOS", 3)
    monkeypatch.setattr(featurize, "_TOKENS", 24)
    views, decoded = views_of(entries, PLAN), []
    batches = views.batches
    views.batches = lambda order: batches(
        (epoch, decoded.extend(rows.tolist()) or rows) for epoch, rows in order
    )
    few = pixel_features(views, width=10, **SIZES)
    assert decoded == [0, 8, 15]
    (batch,) = batches([(0, np.array([0, 8, 15]))])
    tokens = patchify(batch.video.flatten(0, 2), **SIZES)[::4]  # 24 of 96
    assert torch.allclose(few.mean, tokens.double().mean(0).float())


def test_processes_share_a_file(entries: Entries, views_of: Callable, tmp_path: Path) -> None:
    folder, views = tmp_path / "store", views_of(entries, PLAN)
    same = {"width": 10, "folder": folder, **SIZES}
    first = pixel_features(views, **same)
    (file,) = folder.glob("*.safetensors")
    other = pixel_features(views_of(entries.take(np.arange(4)), PLAN), **same)
    assert other.checksum != first.checksum and len([*folder.glob("*.safetensors")]) == 2
    views.batches = None  # nothing is decoded again
    again = pixel_features(views, **same)
    assert again.checksum == first.checksum and again.variance == first.variance
    file.write_bytes(file.read_bytes()[:-10])
    mended = pixel_features(views_of(entries, PLAN), **same)
    assert mended.checksum == first.checksum


def test_no_video_decodes(demo: Path, views_of: Callable, tmp_path: Path) -> None:
    entries = read_manifest(demo / "test.csv")
    gone = entries_of([replace(entries[0], path=str(tmp_path / "no.webm"))] * 4)
    views = views_of(gone, PLAN, max_bad_fraction=1.0)
    with pytest.raises(UserError, match="none of 4 videos like this one decodes, expected some"):
        pixel_features(views, width=10, **SIZES)
