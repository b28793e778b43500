"""Where a probe's features come from: which views, streamed or stored, of which manifest."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from zlib import crc32

import torch
from torch import Tensor

from vjepa_fast.data.manifest.entries import Entries
from vjepa_fast.data.plan.crops import Augment
from vjepa_fast.evaluation.kinds import Kind
from vjepa_fast.evaluation.labels.targets import TRAIN
from vjepa_fast.evaluation.views.decode import ViewDecoder
from vjepa_fast.evaluation.views.featurize import PixelFeatures, pixel_features
from vjepa_fast.evaluation.views.fill import fill_stores, require_room
from vjepa_fast.evaluation.views.plan import ViewPlan
from vjepa_fast.evaluation.views.positions import FramePositions
from vjepa_fast.evaluation.views.source import FeatureBatch, FeatureSource, Order, Share
from vjepa_fast.evaluation.views.store import StoredFeatures
from vjepa_fast.evaluation.views.stream import StreamedFeatures
from vjepa_fast.inference.clips import Sampling
from vjepa_fast.inference.encoder import VideoEncoder
from vjepa_fast.training.distributed.host_group import HostGroup

_AT_ONCE = 2**28  # bytes of features


@dataclass(frozen=True)
class Views:
    """Which views of a video are probed.

    Attributes:
        segments: in time, to train and to test.
        crops: in space, to test.
        augment: random resized crops and random times to train, anew in every epoch; None: those
            of the test, with one crop.
        frame_positions: add the place of each frame in its video to the features.
    """

    segments: int = 1
    crops: int = 1
    augment: Augment | None = None
    frame_positions: bool = False


@dataclass
class Sources:
    """Makes the sources of features of all splits.

    Attributes:
        entries: the videos of each split.
        sampling: frames and size of a clip.
        tubelet_size: frames of a token.
        views: of each video.
        pool: "mean": one token, the mean of all.
        store: folder for features of fixed views, which is kept; None: one in `work`.
        work: folder of the probe.
        device: of the features.
        dtype: that encoders compute in.
        group: the processes.
        num_workers, backend, max_bad_fraction: see `ViewDecoder`.
        left_out: of each split, the rows of the videos that do not decode, and why; as far as this
            process has seen.
    """

    entries: Mapping[str, Entries]
    sampling: Sampling
    tubelet_size: int
    views: Views
    pool: Literal["tokens", "mean"]
    store: Path | None
    work: Path
    device: torch.device
    dtype: torch.dtype
    group: HostGroup
    num_workers: int
    backend: str
    max_bad_fraction: float
    seed: int
    left_out: dict[str, dict[int, str]] = field(default_factory=dict)
    _decoders: dict[tuple[str, int, Augment | None], ViewDecoder] = field(default_factory=dict)
    _stores: dict[tuple[str, int], dict[Kind, StoredFeatures]] = field(default_factory=dict)

    def fill(self, kinds: Sequence[Kind], asked: Sequence[tuple[str, Tensor, bool]]) -> None:
        """Store what is not there yet, if features are stored; same views are decoded once.

        Collective, and called once: a store of which another process still reads must not grow.

        Args:
            kinds: of features.
            asked: split; rows of its videos, int64 [n]; whether to train on them, or to test.

        Raises:
            UserError: too little disk for all of them; see also `fill_stores`.
        """
        if self.views.augment is not None:
            return
        # By the views: --validation and --test may name the same videos.
        stores: dict[str, dict[Kind, StoredFeatures]] = {}
        wanted: dict[str, list[Tensor]] = {}
        for split, rows, to_train in asked:
            crops = 1 if to_train else self.views.crops
            views = self._decoder(split, crops)
            same = json.dumps(views.settings, sort_keys=True)
            if same not in stores:
                stores[same] = {
                    kind: self._stored(kind, self._streamed(kind, views)) for kind in kinds
                }
            self._stores[split, crops] = stores[same]
            wanted.setdefault(same, []).append(rows)
        fills = [
            (list(stores[same].values()), torch.cat(rows).numpy()) for same, rows in wanted.items()
        ]
        require_room(self.store or self.work, fills)
        self.group.barrier()  # nobody writes before all have seen how much is free
        for its, rows in fills:
            fill_stores(its, rows)
        for (split, _), its in self._stores.items():
            for stored in its.values():
                self.left_out.setdefault(split, {}).update(stored.left_out)

    def at_once(self, kind: Kind) -> int:
        """How many training videos may be held at once; 0 where their features are computed."""
        if self.views.augment is not None:
            return 0
        return _AT_ONCE // self._stores[TRAIN, 1][kind].video_bytes

    def to_train(self, kind: Kind, split: str) -> FeatureSource:
        """Features to train on, augmented if that is asked for."""
        if self.views.augment is None:
            return self._stores[split, 1][kind]
        views = self._decoder(split, 1, self.views.augment)
        return _Noted(self._streamed(kind, views), self.left_out.setdefault(split, {}))

    def to_test(self, kind: Kind, split: str) -> FeatureSource:
        """Features of fixed views."""
        if self.views.augment is None:
            return self._stores[split, self.views.crops][kind]
        views = self._decoder(split, self.views.crops)
        return _Noted(self._streamed(kind, views), self.left_out.setdefault(split, {}))

    def pixels(self, encoder: VideoEncoder) -> PixelFeatures:
        """Principal components of the pixels of the training videos, labeled or not."""
        embed = encoder.model.patch_embed
        return pixel_features(
            self._decoder(TRAIN, 1),
            width=encoder.width,
            patch_size=embed.patch_size,
            tubelet_size=embed.tubelet_size,
            folder=self.store or self.work,
        )

    def _decoder(self, split: str, crops: int, augment: Augment | None = None) -> ViewDecoder:
        """One for the same views, since it goes through the whole manifest and warns of it."""
        key = split, crops, augment
        if key not in self._decoders:
            self._decoders[key] = ViewDecoder(
                self.entries[split],
                ViewPlan(self.sampling, self.views.segments, crops, augment, self.seed),
                device=self.device,
                backend=self.backend,
                num_workers=self.num_workers,
                max_bad_fraction=self.max_bad_fraction,
            )
        return self._decoders[key]

    def settings(self, split: str, crops: int, *, to_train: bool) -> dict:
        """All that the views of a split depend on, as JSON data."""
        augment = self.views.augment if to_train else None
        positions = {"frame_positions": self.views.frame_positions}
        return self._decoder(split, crops, augment).settings | positions

    def _stored(self, kind: Kind, streamed: StreamedFeatures) -> StoredFeatures:
        """A folder for just these features of these videos, so that others may be beside them."""
        key = {"features": kind.name, "of": kind.key, "precision": str(self.dtype)}
        text = json.dumps([key, streamed.settings], sort_keys=True)
        name = f"{kind.slug}-{streamed.views.plan.crops}-{crc32(text.encode()):08x}"
        return StoredFeatures((self.store or self.work) / name, streamed, key)

    def _streamed(self, kind: Kind, views: ViewDecoder) -> StreamedFeatures:
        share = Share(self.group.rank, self.group.world)
        positions = FramePositions(self.tubelet_size) if self.views.frame_positions else None
        return StreamedFeatures(kind.featurize, views, share, positions, pool=self.pool)


@dataclass
class _Noted:
    """A source that notes what is left out."""

    source: FeatureSource
    left_out: dict[int, str]

    def batches(self, order: Order) -> Iterator[FeatureBatch]:
        for batch in self.source.batches(order):
            self.left_out.update(batch.left_out)
            yield batch
