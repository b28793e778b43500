"""Fills stores of features: each video is decoded once for all of them, by all processes."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vjepa_fast.evaluation.views.decode import ViewBatch
from vjepa_fast.evaluation.views.store import OPTION, StoredFeatures
from vjepa_fast.inference.feature_folder import require_space
from vjepa_fast.progress import with_progress

_POLL = 0.2  # seconds
log = logging.getLogger("vjepa_fast")


def fill_stores(stores: Sequence[StoredFeatures], rows: np.ndarray) -> None:
    """Compute what the stores lack of these rows, wait for the other processes, check the stores.

    Process r of n computes every n-th shard from the r-th on, and checks these. A shard that is
    written is not lost, whatever happens then: the next call goes on with the others.

    Args:
        stores: of the same views (one `ViewDecoder`), with any features; afterwards they can give
            `batches` of these rows.
        rows: of the manifest, int64 [n].

    Raises:
        UserError: a shard that cannot be written or that has changed since; too many videos that do
            not decode; features that are not finite.
    """
    share, asked = stores[0].streamed.share, _by_shard(stores[0], rows)
    own = [shard for shard in asked if shard % share.world == share.rank]
    missing = {shard: [_lacks(store, shard, asked[shard]) for store in stores] for shard in own}
    _compute(stores, {shard: lacks for shard, lacks in missing.items() if any(lacks)})
    for store in stores:
        for shard in asked:
            _wait_for(store, shard, asked[shard])
        if share.rank == 0:
            store.folder.finish()
        name = f"checking {store.folder.path.name}"
        for shard in with_progress(own, name, len(own), "shard", leave=False):
            store.folder.check(shard)
        for shard in asked:
            store.open_shard(shard)
        counted = store.streamed.views.count_left_out()
        for row, why in store.left_out.items():
            counted.count(store.streamed.views.entries[row].path, why)


def require_room(
    folder: Path, fills: Sequence[tuple[Sequence[StoredFeatures], np.ndarray]]
) -> None:
    """Raise UserError if a disk has too little space for all that `fill_stores` will compute.

    Args:
        folder: of all the stores.
        fills: arguments of several calls of `fill_stores`.
    """
    needed = sum(
        store.video_bytes * lacks
        for stores, rows in fills
        for store in stores
        if (lacks := sum(len(_lacks(store, *its)) for its in _by_shard(store, rows).items()))
    )
    require_space(folder, needed, f"or choose another {OPTION}")


def _by_shard(store: StoredFeatures, rows: np.ndarray) -> dict[int, np.ndarray]:
    rows = np.unique(np.asarray(rows, dtype=np.int64))
    shards = store.shard_of(rows)
    return {int(shard): rows[shards == shard] for shard in np.unique(shards)}


def _lacks(store: StoredFeatures, shard: int, rows: np.ndarray) -> list[int]:
    """These rows of a shard that are not there yet, ascending."""
    return sorted({*rows.tolist()} - store.in_shard(shard).keys())


def _compute(stores: Sequence[StoredFeatures], missing: dict[int, list[list[int]]]) -> None:
    """Compute and write shards, given the rows that each store lacks."""
    pieces = [
        (shard, piece)
        for shard, lacks in missing.items()
        for _, piece, _ in stores[0].streamed.pieces([(0, np.unique(np.concatenate(lacks)))])
    ]
    if not pieces:
        return
    views = stores[0].streamed.views.batches((0, piece) for _, piece in pieces)
    with closing(views):
        name = f"features in {', '.join(store.folder.path.name for store in stores)}"
        shown = iter(with_progress(views, name, len(pieces), "batch", leave=False))
        for shard, lacks in missing.items():
            found: list[dict[int, Tensor]] = [{} for _ in stores]
            left_out: dict[int, str] = {}
            for batch in _of_shard(shown, sum(of == shard for of, _ in pieces)):
                left_out |= batch.left_out
                for store, tokens, its in zip(stores, found, lacks, strict=True):
                    if its:
                        encoded = store.streamed.encode(batch)
                        kept = encoded.tokens.to("cpu", torch.bfloat16)
                        tokens |= zip(encoded.rows.tolist(), kept, strict=True)
            for store, tokens, its in zip(stores, found, lacks, strict=True):
                if its:
                    store.write(shard, tokens, left_out)
        next(shown, None)  # there is none; it says that it is done


def _of_shard(batches: Iterator[ViewBatch], count: int) -> Iterator[ViewBatch]:
    for _ in range(count):
        yield next(batches)


def _wait_for(store: StoredFeatures, shard: int, rows: np.ndarray) -> None:
    """Wait until another process has written a shard."""
    waiting = False
    while not set(rows.tolist()) <= store.in_shard(shard).keys():
        if not waiting:
            log.info("%s: waiting for other processes to finish it", store.folder.path)
        waiting = True
        time.sleep(_POLL)
