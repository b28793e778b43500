"""Features of views as they are streamed: the right clips, in order, shared by processes."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.helpers.videos import manifest_of, read_numbers, write_numbered
from vjepa_fast.data.decode.pyav import PyavDecoder, decode_clip
from vjepa_fast.data.manifest.entries import Entries, entries_of
from vjepa_fast.data.manifest.files import read_manifest
from vjepa_fast.data.plan.crops import Augment
from vjepa_fast.errors import UserError
from vjepa_fast.evaluation.views import stream
from vjepa_fast.evaluation.views.plan import ViewPlan
from vjepa_fast.evaluation.views.source import Share
from vjepa_fast.evaluation.views.stream import StreamedFeatures
from vjepa_fast.inference.clips import Sampling

SAMPLING = Sampling(4, 16, 1)


def test_tokens_are_those_of_each_clip_alone(
    entries: Entries, views_of: Callable, tubelets: Callable
) -> None:
    plan = ViewPlan(SAMPLING, segments=2, crops=3)
    rows = np.array([5, 0, 9])
    (batch,) = StreamedFeatures(tubelets, views_of(entries, plan)).batches([(0, rows)])
    assert batch.rows.tolist() == [5, 0, 9] and batch.tokens.shape == (3, 3, 4, 3)
    assert batch.tokens.dtype == torch.float32 and not batch.left_out
    clips = [decode_clip(clip, entries[clip.video], 16) for clip in plan.plans(entries, rows)]
    alone = tubelets(torch.stack(clips)).view(3, 3, 4, 3)
    assert torch.equal(batch.tokens, alone)


def test_processes_have_their_parts_of_every_batch(
    entries: Entries, views_of: Callable, tubelets: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In order, in small pieces, also where a part is empty; random views are the same."""
    monkeypatch.setattr(stream, "_CLIPS", 4)
    plan = ViewPlan(SAMPLING, segments=2, augment=Augment(flip=False), seed=1)
    order = [(0, np.arange(7)), (1, np.array([3])), (2, np.array([], np.int64)), (3, np.arange(5))]
    views = views_of(entries, plan)
    alone = list(StreamedFeatures(tubelets, views).batches(order))
    parts = [
        list(StreamedFeatures(tubelets, views, Share(rank, 3)).batches(order)) for rank in range(3)
    ]
    assert [len(part) for part in parts] == [4] * 3
    for whole, (_, rows), *three in zip(alone, order, *parts, strict=True):
        assert whole.rows.tolist() == rows.tolist()
        for rank, part in enumerate(three):
            assert part.rows.tolist() == rows[rank::3].tolist()
            assert torch.equal(part.tokens, whole.tokens[rank::3])
    assert parts[2][1].tokens.shape == (0, 1, 4, 3)
    assert not torch.equal(alone[0].tokens[3:4], alone[1].tokens)


@pytest.mark.parametrize("vfr", [True, False])
def test_images_and_clips_in_seconds(tmp_path: Path, views_of: Callable, vfr: bool) -> None:
    """Frame numbers are known even where they follow from time stamps."""
    Image.fromarray(np.full((48, 64, 3), 90, np.uint8)).save(tmp_path / "image.png")
    paths = [write_numbered(tmp_path, "h264", 50), tmp_path / "image.png"]
    entries = read_manifest(manifest_of(tmp_path, paths))
    if vfr:
        entries = entries_of([replace(entries[0], vfr=True), entries[1]])
    views = views_of(entries, ViewPlan(Sampling(4, 48, fps=5), segments=2, crops=3))
    (batch,) = views.batches([(0, np.array([1, 0]))])
    assert batch.video.shape == (2, 3, 2, 4, 48, 48, 3)
    assert batch.frames[0].tolist() == [[0] * 4] * 2 and (batch.video[0] == 90).all()
    assert batch.frames[1].tolist() == [[7, 12, 17, 22], [22, 27, 32, 37]]
    whole = torch.cat([batch.video[1, 0, :, :, :, :16], batch.video[1, 2]], 3)  # left and right
    assert [read_numbers(clip.numpy()) for clip in whole] == batch.frames[1].tolist()


def test_what_does_not_decode_is_left_out(
    demo: Path,
    tmp_path: Path,
    views_of: Callable,
    tubelets: Callable,
    caplog: pytest.LogCaptureFixture,
) -> None:
    shutil.copytree(demo, tmp_path / "demo")
    entries = read_manifest(tmp_path / "demo" / "test.csv")
    Path(entries[2].path).unlink()
    plan = ViewPlan(SAMPLING, segments=2)
    views = views_of(entries, plan, max_bad_fraction=0.1)
    order = [(0, np.array([2])), (1, np.arange(4))]
    with caplog.at_level(logging.WARNING, "vjepa_fast"):
        first, second = StreamedFeatures(tubelets, views).batches(order)
    assert len(first.rows) == 0 and first.tokens.shape == (0, 1, 4, 3)
    assert second.rows.tolist() == [0, 1, 3] and second.left_out.keys() == {2}
    assert entries[2].path in second.left_out[2]
    assert len([r for r in caplog.records if "left out" in r.message]) == 1  # one warning in all

    strict = views_of(entries, plan, max_bad_fraction=0.05)
    with pytest.raises(
        UserError, match=r"found 1 of 16 videos undecodable .* at most data\.max_bad"
    ):
        next(StreamedFeatures(tubelets, strict).batches(order))


def test_features_that_are_not_finite(
    entries: Entries, views_of: Callable, tubelets: Callable
) -> None:
    def broken(video: Tensor) -> Tensor:
        features = tubelets(video)
        features[len(video) // 2] = float("nan")
        return features

    source = StreamedFeatures(broken, views_of(entries, ViewPlan(SAMPLING)))
    with pytest.raises(UserError, match="NaN or infinite, expected finite ones; use another"):
        next(source.batches([(0, np.arange(4))]))


def test_the_mean_of_a_view_is_that_of_its_tokens(
    entries: Entries, views_of: Callable, tubelets: Callable
) -> None:
    views = views_of(entries, ViewPlan(SAMPLING, segments=2, crops=3))
    (tokens,), (pooled,) = (
        StreamedFeatures(tubelets, views, pool=pool).batches([(0, np.arange(3))])
        for pool in ("tokens", "mean")
    )
    assert torch.equal(pooled.tokens, tokens.tokens.mean(2, keepdim=True))


def test_crops_of_a_segment_are_decoded_together(entries: Entries, views_of: Callable) -> None:
    """Each video's two segments once, not once for each of three crops."""
    plan = ViewPlan(SAMPLING, segments=2, crops=3)
    clips = plan.plans(entries, np.arange(2))
    with closing(PyavDecoder(entries, 16, torch.device("cpu"), 1)) as decoder:
        submitted = decoder.submit(clips)
        assert len(set(submitted)) == 4
        video, failures = decoder.collect(clips, submitted)
    assert not failures
    alone = [decode_clip(clip, entries[clip.video], 16) for clip in clips]
    assert torch.equal(video, torch.stack(alone))
