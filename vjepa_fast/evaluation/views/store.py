"""Features of fixed views, kept on the disk in bf16, and read from there in any order.

A store is a `FeatureFolder`. Shard i has the videos i · n … (i + 1) · n - 1 of the manifest, of
these only the ones that were asked for, so that a store grows when more are. Its settings tell what
the features are of: the encoder, the views and the videos.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vjepa_fast.data.manifest.entry import ManifestEntry
from vjepa_fast.errors import UserError
from vjepa_fast.evaluation.views.source import FeatureBatch, Order
from vjepa_fast.evaluation.views.stream import StreamedFeatures
from vjepa_fast.inference.feature_folder import FeatureFolder

OPTION = "--store"
_VIDEOS, _BYTES = 256, 2**29  # of a shard: its videos, and their decoded views, at most
_AHEAD = 2  # batches that are read ahead


class StoredFeatures:
    """A `FeatureSource` of what a folder holds, see `fill_stores`; tokens are bf16.

    Reading maps the files into memory, and reads from the disk what a batch needs; the system keeps
    in its cache what fits there.

    Args:
        path: the folder; it is made, or continued if the same settings made it.
        streamed: computes what is missing; fixed views.
        key: what tells its `featurize` from others, as JSON data, e.g. the weights' checksum.

    Attributes:
        left_out: the manifest's videos that have no features, and why; of those that were asked
            for.

    Raises:
        UserError: the folder holds something else, or features of another key.
    """

    def __init__(self, path: Path, streamed: StreamedFeatures, key: Mapping[str, object]) -> None:
        plan = streamed.views.plan
        if plan.augment is not None:
            raise ValueError("plan: found random views, expected fixed ones, which can be stored")
        video = streamed.views.clip_bytes * plan.crops * plan.segments
        self.streamed, self.left_out = streamed, {}
        self._per_shard = max(1, min(_VIDEOS, _BYTES // video))
        self.shards = -(-len(streamed.views.entries) // self._per_shard)
        settings = {**key, **streamed.settings, "dtype": "bf16", "per_shard": self._per_shard}
        self.folder = FeatureFolder.open(path, settings, self.shards, "safetensors", OPTION)
        self._place = np.full(len(streamed.views.entries), -1, np.int16)  # in its shard
        self._maps: dict[int, np.ndarray] = {}
        self._shape: tuple[int, int, int] | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(V, S · N, D), the shape of a video's tokens."""
        return self._shape or self.streamed.shape

    def shard_of(self, rows: np.ndarray) -> np.ndarray:
        """The shard of each row, int64 [n]."""
        return rows // self._per_shard

    def in_shard(self, shard: int) -> dict[int, str]:
        """The rows of a shard that are there, in order, with the reason where it is left out."""
        if not self.folder.is_done(shard):
            return {}
        return {int(row["manifest_row"]): row["left_out"] for row in self.folder.rows(shard)}

    def write(self, shard: int, tokens: Mapping[int, Tensor], left_out: Mapping[int, str]) -> None:
        """Add videos to a shard: bf16 [V, S · N, D] by row, and those that have none.

        Raises:
            UserError: it cannot be written, e.g. because the disk is full, or what is there has
                changed; the shard stays as it was.
        """
        before = self.in_shard(shard)
        tokens = dict(tokens)
        kept = [row for row, why in before.items() if not why]
        if kept:
            self.folder.check(shard)
            tokens |= zip(kept, self.folder.mapped(shard), strict=True)
        reasons = {row: why for row, why in before.items() if why} | dict(left_out)
        rows = sorted({*tokens, *reasons})
        entries = self.streamed.views.entries
        try:
            self.folder.write(
                shard,
                torch.stack([tokens[row] for row in rows if row in tokens]) if tokens else None,
                [_line(entries[row], row, reasons.get(row, "")) for row in rows],
            )
        except OSError as error:
            raise UserError(
                f"{self.folder.path}: found that features cannot be stored ({error.strerror}), "
                f"expected room for {len(tokens) * self.video_bytes / 1e6:.1f} MB at a time; make "
                "room, and run the same command again, which goes on here"
            ) from None

    @property
    def video_bytes(self) -> int:
        """Bytes of a video's features."""
        views, tokens, width = self.shape
        return 2 * views * tokens * width

    def open_shard(self, shard: int) -> None:
        """Make a shard's videos readable."""
        there = self.in_shard(shard)
        rows = [row for row, why in there.items() if not why]
        self.left_out |= {row: why for row, why in there.items() if why}
        self._place[rows] = np.arange(len(rows))
        if rows:
            tokens = self.folder.mapped(shard)
            self._shape = tuple(tokens.shape[1:])
            self._maps[shard] = tokens.reshape(len(rows), -1).view(torch.int16).numpy()

    def batches(self, order: Order) -> Iterator[FeatureBatch]:
        """See `FeatureSource`; of rows that `fill_stores` was given."""
        pending, shape = deque(), self.shape
        with ThreadPoolExecutor(1, thread_name_prefix="vjepa-features") as reader:
            for _, rows in order:
                pending.append(reader.submit(self._read, self.streamed.share.part(rows), shape))
                if len(pending) > _AHEAD:
                    yield self._on_device(pending.popleft().result())
            while pending:
                yield self._on_device(pending.popleft().result())

    def _on_device(self, batch: FeatureBatch) -> FeatureBatch:
        tokens = batch.tokens.to(self.streamed.views.device)
        return FeatureBatch(batch.rows, tokens, batch.left_out)

    def _read(self, rows: np.ndarray, shape: tuple[int, int, int]) -> FeatureBatch:
        """The features of these rows, on the host."""
        place, shards = self._place[rows], self.shard_of(rows)
        found = place >= 0
        left_out = {row: self.left_out[row] for row in rows[~found].tolist()}
        tokens = torch.empty(int(found.sum()), *shape, dtype=torch.bfloat16)
        out = tokens.flatten(1).view(torch.int16).numpy()
        for i, (shard, k) in enumerate(zip(shards[found], place[found], strict=True)):
            out[i] = self._maps[int(shard)][k]
        return FeatureBatch(torch.from_numpy(rows[found]), tokens, left_out)


def _line(entry: ManifestEntry, row: int, left_out: str) -> dict:
    return {"path": entry.path, "manifest_row": row, "left_out": left_out}
