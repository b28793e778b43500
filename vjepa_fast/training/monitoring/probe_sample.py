"""The labeled clips of the probe during training: a fixed sample, the same in every run."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from vjepa_fast.config import Config
from vjepa_fast.data.decode.pyav import decode_pixels, in_words
from vjepa_fast.data.manifest.entries import Entries
from vjepa_fast.data.manifest.entry import LABEL_PREFIX, VALUE_PREFIX
from vjepa_fast.data.open_manifest import open_manifest
from vjepa_fast.data.plan.planner import ClipPlanner
from vjepa_fast.data.workers.process_pool import ProcessPool
from vjepa_fast.errors import UserError
from vjepa_fast.masks.philox import STREAM_PROBE_SAMPLE, draw

KEPT = 2**31  # bytes of a process's clips that are kept between probes; more are decoded each time
_HELD_OUT = 5  # one video in so many tests the probe, where there is no test manifest
_AHEAD = 64  # clips that are decoded ahead

log = logging.getLogger("vjepa_fast")


class ProbeSample:
    """The videos of `log.probe_label`, and the clips of one rank's share of them.

    A video's clip is its middle window and largest centered square, without augmentation. Which
    videos are taken depends on the manifests and `log.probe_videos` alone.

    Args:
        config: of the run, with log.probe_label.
        rank: rank of this process.
        world: number of ranks.
        manifests: of `data.manifests`; None: they are opened.

    Attributes:
        targets: of each video, [n]: classes, int64, or values, float64.
        tested: whether a video tests the probe, or else the probe learns from it, bool [n].
        share: this rank's videos, int64.
        what: the sample in words, and a digest of its videos: the same for no other sample.

    Raises:
        UserError: no manifest has the label; it is one class or value only; the sample is smaller
            than the number of classes.
    """

    def __init__(
        self, config: Config, rank: int, world: int, manifests: Sequence[Entries] | None = None
    ) -> None:
        data, log_config = config.data, config.log
        label, count = log_config.probe_label, log_config.probe_videos
        paths = [manifest.path for manifest in data.manifests]
        manifests = manifests or [open_manifest(path) for path in paths]
        parts = [_Column.of(paths, manifests, label, "data.manifests")]
        if test := log_config.probe_test:
            parts.append(_Column.of([test], [open_manifest(test)], label, "log.probe_test"))
        if len({part.name for part in parts}) > 1:
            raise UserError(
                f"log.probe_test: found {parts[1].name} where data.manifests have {parts[0].name}, "
                "expected the same column; rename one of them"
            )
        entries = Entries.joined([e for part in parts for e in part.sample(count)])
        if label not in (*entries.label_names, *entries.value_names):
            raise UserError(
                f"log.probe_label: found names of classes in {parts[0].name} of some manifests and "
                "integers in others, expected one kind; write the same kind into all of them"
            )
        self.targets = entries.column(parts[0].name)
        self.tested = np.arange(len(entries)) >= min(parts[0].total, count)
        if len(parts) == 1:
            self.tested = _first(len(entries), len(entries) // _HELD_OUT)
        self._check(parts[0], count)
        self.share = np.arange(rank, len(entries), world)
        self._planner = ClipPlanner.in_order(
            entries, num_frames=data.num_frames, frame_step=data.frame_step, fps=data.fps
        )
        learned, digest = int((~self.tested).sum()), self._planner.digest[:8]
        self.what = (
            f"{parts[0].name}, {learned} videos to learn from, {self.tested.sum()} to test, "
            f"sample {digest}"
        )
        self._crop_size, self._workers = data.crop_size, data.num_workers
        size = len(self.share) * data.num_frames * data.crop_size**2 * 3
        self._kept: list[tuple[np.ndarray, Tensor]] | None = [] if size <= KEPT else None
        self._named: set[int] = set()

    @property
    def classes(self) -> bool:
        """Whether the targets are classes."""
        return self.targets.dtype.kind == "i"

    def batches(self, size: int) -> Iterator[tuple[np.ndarray, Tensor]]:
        """This rank's clips; those that cannot be decoded are left out, with a warning each.

        Yields:
            Their videos' positions in `targets`, int64 [B], and the clips, uint8 [B, T, S, S, 3] on
            the CPU, B up to `size`.
        """
        if self._kept:
            yield from self._kept
            return
        clips = self._decoded()
        while batch := list(islice(clips, size)):
            found = np.array([i for i, _ in batch]), torch.stack([clip for _, clip in batch])
            if self._kept is not None:
                self._kept.append(found)
            yield found

    def _decoded(self) -> Iterator[tuple[int, Tensor]]:
        """In processes of their own: an FFmpeg crash costs a clip, not the run."""
        with ProcessPool(self._workers, "vjepa-probe", modules=(decode_pixels.__module__,)) as pool:
            pending: deque = deque()
            for i in (*self.share.tolist(), *[None] * _AHEAD):
                if i is not None:
                    plan = self._planner.plan_one(i)
                    entry = self._planner.entries[i]
                    clip = pool.submit(decode_pixels, plan, entry, self._crop_size)
                    pending.append((i, plan, clip))
                if pending and (i is None or len(pending) > _AHEAD):
                    first, plan, clip = pending.popleft()
                    try:
                        yield first, torch.from_numpy(clip.result())
                    except (UserError, OSError) as error:
                        if first not in self._named:
                            self._named.add(first)
                            log.warning("left out of the probe: %s", in_words(error, plan))

    def _check(self, column: _Column, count: int) -> None:
        learned, tested = self.targets[~self.tested], self.targets[self.tested]
        kind = "class" if self.classes else "value"
        if column.distinct < 2:
            raise UserError(
                f"log.probe_label: found one {kind} only in the {column.total} videos with "
                f"{column.name}, expected at least two; name another column"
            )
        needed = column.distinct if self.classes else 2
        if len(learned) < needed or len(np.unique(learned)) < 2 or len(np.unique(tested)) < 2:
            of = f"{column.distinct} classes" if self.classes else "values"
            raise UserError(
                f"log.probe_videos: found {count}, of which the probe learns from {len(learned)} "
                f"and is tested on {len(tested)}, expected several for each of the {of} of "
                f"{column.name}; set it to e.g. {max(10 * needed, 100)}, or log.probe_every to "
                "null where there are fewer"
            )


class _Column:
    """A column of some manifests, without the videos that have no label.

    Attributes:
        name: of the column.
        total: videos with a label.
        distinct: different classes or values of the manifest that has the most.
    """

    def __init__(self, name: str, parts: Sequence[Entries]) -> None:
        self.name, self._parts = name, parts
        self._known = [_known(entries.column(name)) for entries in parts]
        self.total = sum(map(len, self._known))
        self.distinct = max(
            len(np.unique(entries.column(name)[known]))
            for entries, known in zip(parts, self._known, strict=True)
        )

    @classmethod
    def of(
        cls, paths: Sequence[str], manifests: Sequence[Entries], label: str, key: str
    ) -> _Column:
        """The column label_… or else value_… of the manifests that have it.

        Raises:
            UserError: none has it, or no video has a label.
        """
        for name, names in (
            (LABEL_PREFIX + label, [entries.label_names for entries in manifests]),
            (VALUE_PREFIX + label, [entries.value_names for entries in manifests]),
        ):
            having = [e for e, found in zip(manifests, names, strict=True) if label in found]
            if having:
                column = cls(name, having)
                if column.total:
                    return column
                raise UserError(
                    f"log.probe_label: found negative numbers only in {name} of {key}, which count "
                    "as no label, expected classes from 0 on; fill the column, or name another one"
                )
        known = sorted({n for e in manifests for n in (*e.label_names, *e.value_names)})
        raise UserError(
            f"log.probe_label: found {label!r}, which is no column of {', '.join(paths)} ({key}), "
            f"expected one of {', '.join(known) or 'theirs, which have none'}; name another one, "
            "or add it to the manifest as label_NAME or value_NAME"
        )

    def sample(self, count: int) -> list[Entries]:
        """Up to `count` of the labeled videos, in the order of the manifests."""
        chosen, first, found = _first(self.total, count), 0, []
        for entries, known in zip(self._parts, self._known, strict=True):
            found.append(entries.take(known[chosen[first : first + len(known)]]))
            first += len(known)
        return found


def _known(column: np.ndarray) -> np.ndarray:
    """The videos with a label."""
    return np.flatnonzero(column >= 0) if column.dtype.kind == "i" else np.arange(len(column))


def _first(total: int, count: int) -> np.ndarray:
    """Which `count` of `total` a fixed draw chooses, bool [total]; all of fewer."""
    order = np.argsort(draw(0, STREAM_PROBE_SAMPLE, np.arange(total), 1)[:, 0], kind="stable")
    chosen = np.zeros(total, dtype=bool)
    chosen[order[:count]] = True
    return chosen
