"""Stores of features: what was streamed, in any order; resumed, grown, shared, checked."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.inference.folders import files
from vjepa_fast.data.manifest.entries import Entries
from vjepa_fast.data.manifest.files import read_manifest
from vjepa_fast.data.plan.crops import Augment
from vjepa_fast.errors import UserError
from vjepa_fast.evaluation.views import store as store_module
from vjepa_fast.evaluation.views.fill import fill_stores, require_room
from vjepa_fast.evaluation.views.plan import ViewPlan
from vjepa_fast.evaluation.views.source import ALONE, Share
from vjepa_fast.evaluation.views.store import StoredFeatures
from vjepa_fast.evaluation.views.stream import StreamedFeatures
from vjepa_fast.inference.clips import Sampling

PLAN = ViewPlan(Sampling(4, 16, 1), crops=2)
ALL = np.arange(16)
Make = Callable[..., StoredFeatures]


@pytest.fixture
def make(
    entries: Entries,
    views_of: Callable,
    tubelets: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Make:
    """Makes a store with shards of five videos; `store.asked` are the clips that it encoded."""
    monkeypatch.setattr(store_module, "_VIDEOS", 5)

    def make_store(
        name: str = "store",
        weights: str = "1a",
        share: Share = ALONE,
        plan: ViewPlan = PLAN,
        of: Entries = entries,
        featurize: Callable = tubelets,
    ) -> StoredFeatures:
        counted: list[int] = []

        def counting(video: torch.Tensor) -> torch.Tensor:
            counted.append(len(video))
            return featurize(video)

        streamed = StreamedFeatures(counting, views_of(of, plan, max_bad_fraction=0.1), share)
        store = StoredFeatures(tmp_path / name, streamed, {"weights": weights})
        store.asked = counted
        return store

    return make_store


def test_a_store_gives_what_is_streamed_in_bf16(make: Make) -> None:
    store = make()
    fill_stores([store], ALL)
    assert store.shape == (2, 2, 3) and (store.folder.path / "index.csv").is_file()
    order = [(0, np.array([15, 2, 7])), (5, ALL[::-1]), (6, np.array([], np.int64))]
    found, streamed = store.batches(order), store.streamed.batches([(0, rows) for _, rows in order])
    for one, other in zip(found, streamed, strict=True):
        assert one.rows.tolist() == other.rows.tolist()
        assert one.tokens.dtype == torch.bfloat16
        assert torch.equal(one.tokens, other.tokens.bfloat16())


def test_a_store_is_made_once_and_grows(make: Make) -> None:
    store = make()
    fill_stores([store], np.array([14, 3]))
    assert sum(store.asked) == 2 * 2
    again = make()
    fill_stores([again], np.array([3]))
    assert again.asked == []
    grown = make()
    fill_stores([grown], np.array([3, 4, 6]))
    assert sum(grown.asked) == 2 * 2
    order = [(0, np.array([6, 3, 4]))]
    (stored,), (streamed,) = grown.batches(order), grown.streamed.batches(order)
    assert torch.equal(stored.tokens, streamed.tokens.bfloat16())


def test_several_stores_decode_once(make: Make) -> None:
    first, second = make("first"), make("second", featurize=lambda video: video[:, :2, 0, :2, 0])
    fill_stores([first], np.arange(5))
    second.streamed.views = first.streamed.views
    decoded, batches = [], first.streamed.views.batches

    def counting(order):
        return batches((epoch, decoded.append(len(rows)) or rows) for epoch, rows in order)

    first.streamed.views.batches = counting
    fill_stores([first, second], np.arange(7))
    assert sum(decoded) == 7
    assert sum(first.asked) == (5 + 2) * 2 and sum(second.asked) == 7 * 2
    for store in (first, second):
        (batch,) = store.batches([(0, np.array([6, 0]))])
        (streamed,) = store.streamed.batches([(0, np.array([6, 0]))])
        assert torch.equal(batch.tokens, streamed.tokens.bfloat16())


def test_processes_fill_one_store_without_meeting(make: Make) -> None:
    alone = make("alone")
    fill_stores([alone], ALL)
    stores = [make("shared", share=Share(rank, 3)) for rank in range(3)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda store: fill_stores([store], ALL), stores))
    assert files(alone.folder.path) == files(stores[0].folder.path)
    assert [sum(store.asked) for store in stores] == [2 * n for n in (5 + 1, 5, 5)]
    rows = np.array([9, 1, 12, 0, 5])
    (whole,) = alone.batches([(0, rows)])
    for rank, store in enumerate(stores):
        (part,) = store.batches([(0, rows)])
        assert part.rows.tolist() == rows[rank::3].tolist()
        assert torch.equal(part.tokens, whole.tokens[rank::3])


def test_a_store_of_something_else(make: Make, demo: Path, tmp_path: Path) -> None:
    make()
    with pytest.raises(UserError, match=r"of other weights or settings \(weights 1a, now 2b\)"):
        make(weights="2b")
    with pytest.raises(UserError, match=r"\(crops 2, now 1\), .* choose another --store"):
        make(plan=ViewPlan(PLAN.sampling))
    with pytest.raises(UserError, match=r"\(videos \w+, now \w+\)"):
        make(of=read_manifest(demo / "train.csv"))
    file = tmp_path / "store" / "features.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"older": 1}))
    with pytest.raises(UserError, match=r"settings \(older 1, now None\)"):
        make()
    with pytest.raises(ValueError, match="found random views"):
        make(plan=ViewPlan(PLAN.sampling, augment=Augment()))


@pytest.mark.parametrize("part", ["features", "header"])
def test_a_changed_byte_is_an_error(make: Make, part: str) -> None:
    fill_stores([make()], ALL)
    store = make()
    path = store.folder.path / "shards" / "00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-1 if part == "features" else content.index(b'"crc32":"') + 9] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"00001\.safetensors: found other bytes than were written"):
        fill_stores([store], ALL)
    path.unlink()
    again = make()
    fill_stores([again], ALL)
    assert sum(again.asked) == 5 * 2


def test_a_full_disk_loses_nothing(make: Make) -> None:
    """A limit on the size of files stands for the disk: the second shard is larger than it."""
    fill_stores([make("other")], ALL)
    whole = files(make("other").folder.path)
    fill_stores([make()], np.array([0, 1, 2, 3]))
    limits, store = resource.getrlimit(resource.RLIMIT_FSIZE), make()
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    size = len(whole["shards/00001.safetensors"])
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot be stored \(File too large\), expected room"):
            fill_stores([store], ALL[1:10])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert make().in_shard(0).keys() == {0, 1, 2, 3}  # as it was: with one more it is too large
    fill_stores([make()], ALL)
    assert files(store.folder.path) == whole


def test_too_little_disk_is_found_before(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """What all stores need together counts; a video takes 2 views x 2 tokens x 3 x 2 bytes."""
    stores = [make(name) for name in ("first", "second", "of the test")]
    folder = stores[0].folder.path.parent
    fill_stores(stores[:1], ALL[:4])
    fills = [(stores[:2], ALL), (stores[2:], ALL[:5])]
    needed, usage = (12 + 16 + 5) * 24, shutil.disk_usage(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed))
    require_room(folder, fills)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed - 1))
    with pytest.raises(UserError, match=r"0\.0 GB of free disk, .* or choose another --store"):
        require_room(folder, fills)


def test_what_does_not_decode_is_remembered(make: Make, demo: Path, tmp_path: Path) -> None:
    shutil.copytree(demo, tmp_path / "demo")
    of = read_manifest(tmp_path / "demo" / "test.csv")
    Path(of[2].path).unlink()
    fill_stores([make(of=of)], ALL)
    store = make(of=of)
    fill_stores([store], ALL)
    assert store.asked == [] and store.left_out.keys() == {2}
    (batch,) = store.batches([(0, np.array([1, 2, 3]))])
    assert batch.rows.tolist() == [1, 3] and of[2].path in batch.left_out[2]
    os.unlink(of[9].path)
    (store.folder.path / "shards" / "00001.csv").unlink()
    with pytest.raises(UserError, match="found 2 of 16 videos undecodable"):
        fill_stores([make(of=of)], ALL)


def test_what_a_killed_process_left_of_a_shard_without_features(make: Make) -> None:
    store = make()
    fill_stores([store], np.array([2]))
    (store.folder.path / "shards" / "00000.csv").unlink()  # killed between the two files
    store.write(0, {}, {2: "gone"})
    assert store.in_shard(0) == {2: "gone"}  # else all processes would wait for it forever
    fill_stores([store], np.array([2]))
    assert store.left_out == {2: "gone"}


def test_features_that_are_not_finite_are_not_stored(make: Make, entries: Entries) -> None:
    store = make(featurize=lambda video: video[:, :2, 0, 0] / 0.0)
    with pytest.raises(UserError, match="found features that are NaN or infinite"):
        fill_stores([store], ALL)
    assert files(store.folder.path).keys() == {"features.json"}
