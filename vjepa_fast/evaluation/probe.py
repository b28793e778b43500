"""Probes a checkpoint's frozen features: from manifests to the scores of heads on test videos."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor

from vjepa_fast.config import Config, parse_config, translate_stored
from vjepa_fast.data.manifest.entries import Entries
from vjepa_fast.data.open_manifest import open_manifest
from vjepa_fast.errors import UserError
from vjepa_fast.evaluation.heads.neighbors import NeighborHeads
from vjepa_fast.evaluation.heads.spec import HeadSpec, places
from vjepa_fast.evaluation.heads.stack import HeadStack
from vjepa_fast.evaluation.kinds import Kind, kind_names, make_kind
from vjepa_fast.evaluation.labels.draws import held_out
from vjepa_fast.evaluation.labels.grid import make_heads
from vjepa_fast.evaluation.labels.targets import TEST, TRAIN, VALIDATION, Target, read_targets
from vjepa_fast.evaluation.places import WORK, own_places
from vjepa_fast.evaluation.results import Scores
from vjepa_fast.evaluation.run_heads import (
    Predictions,
    Restart,
    check_learned,
    pooled,
    predict,
    train_heads,
)
from vjepa_fast.evaluation.settings import ProbeSettings, test_manifest_beside
from vjepa_fast.evaluation.sources import Sources
from vjepa_fast.evaluation.views.source import FeatureSource
from vjepa_fast.inference.encoder import VideoEncoder
from vjepa_fast.inference.load import load_encoder
from vjepa_fast.training.checkpoint.format import Checkpoint
from vjepa_fast.training.distributed.cpu import prepare_cpu
from vjepa_fast.training.distributed.host_group import HostGroup
from vjepa_fast.training.distributed.join import join_processes, leave_processes
from vjepa_fast.training.distributed.peer_watch import PeerWatch

log = logging.getLogger("vjepa_fast")
DEFAULT_VALIDATION = 0.1


@dataclass(frozen=True)
class KindResult:
    """All heads on one kind of features.

    Attributes:
        name: the kind's.
        losses: of each head, its last training loss; NaN for nearest neighbors.
        validation, test: scores of each head; None of one that has learned from no video.
        predictions: on the test videos, by target.
        stack: the trained heads; None for nearest neighbors.
    """

    name: str
    losses: list[float]
    validation: list[Scores | None] | None
    test: list[Scores | None]
    predictions: dict[str, Predictions]
    stack: HeadStack | None


@dataclass(frozen=True)
class Probing:
    """A probe.

    Attributes:
        settings: what is asked for.
        checkpoint: the weights and their config.
        config: the run's, with the sizes of the probe's clips.
        encoder: the checkpoint's, on its device.
        manifests: path by split.
        targets: what the heads learn.
        specs, labeled: the heads, and the rows that each learns from, int64 [m].
        held_out: rows for validation, of the validation manifest or of the training manifest.
        sources: of features.
        group: the processes.
        results: of each kind of features.
    """

    settings: ProbeSettings
    checkpoint: Checkpoint
    config: Config
    encoder: VideoEncoder
    manifests: dict[str, Path]
    targets: list[Target]
    specs: list[HeadSpec]
    labeled: list[Tensor]
    held_out: Tensor | None
    sources: Sources
    group: HostGroup
    results: list[KindResult] = field(default_factory=list)

    @property
    def entries(self) -> dict[str, Entries]:
        """The videos of each split."""
        return self.sources.entries

    def run(self) -> None:
        """Train and test all heads on the features of each kind. Collective."""
        sources, names = self.sources, kind_names(self.settings.baselines)
        labeled = torch.cat(self.labeled).unique()
        kinds = [make_kind(name, self.config, self.encoder, sources.pixels) for name in names]
        to_train = self.settings.probe != "knn"
        needed = [(TRAIN, labeled, to_train), (TEST, self._rows(TEST), False)]
        if self.held_out is not None:
            needed.append((self._validation, self.held_out, False))
        sources.fill(kinds, needed)
        self.results.extend(self._result(kind, labeled) for kind in kinds)

    def _result(self, kind: Kind, labeled: Tensor) -> KindResult:
        stack, losses = None, [math.nan] * len(self.specs)
        if self.settings.probe == "knn":
            source = self.sources.to_test(kind, TRAIN)
            predictor, learned = self._neighbors(source, labeled, kind.name)
        else:
            stack, losses, learned = self._trained(kind, self.sources.to_train(kind, TRAIN))
            predictor = stack
        check_learned(self.specs, learned, self.manifests[TRAIN], self.group, kind.name)

        def predicted(split: str, rows: Tensor) -> dict[str, Predictions]:
            source = self.sources.to_test(kind, split)
            return predict(predictor, source, rows, self.targets, split, self.group, kind.name)

        validation = None
        if self.held_out is not None:
            validation = self._scores(predicted(self._validation, self.held_out), learned)
        found = predicted(TEST, self._rows(TEST))
        test = self._scores(found, learned)
        return KindResult(kind.name, losses, validation, test, found, stack)

    @property
    def _validation(self) -> str:
        """The split whose videos the heads are compared on."""
        return VALIDATION if VALIDATION in self.entries else TRAIN

    def _rows(self, split: str) -> Tensor:
        return torch.arange(len(self.entries[split]))

    def _trained(
        self, kind: Kind, source: FeatureSource
    ) -> tuple[HeadStack, list[float], list[bool]]:
        """The heads, their losses, and which have learned from any video."""
        form, recipe = self.settings.form(self.encoder.model), self.settings.recipe
        restart = Restart(self.work / f"{kind.slug}.safetensors", self._key(kind))
        stack, losses, seen = train_heads(
            source,
            self.targets,
            self.specs,
            self.labeled,
            form,
            recipe,
            self.sources.at_once(kind),
            self.encoder.device,
            self.group,
            restart,
            kind.name,
        )
        return stack, losses.tolist(), (seen > 0).tolist()

    def _key(self, kind: Kind) -> str:
        """A hash (hex) of all that the training of heads on these features depends on."""
        digest = sha256()
        parts = [
            kind.key,
            str(self.encoder.dtype),
            self.sources.settings(TRAIN, crops=1, to_train=True),
            self.settings.form(self.encoder.model),
            self.settings.recipe,
            self.specs,
        ]
        digest.update(repr(parts).encode())
        for rows in (*self.labeled, *(target.learned(TRAIN) for target in self.targets)):
            digest.update(rows.numpy().tobytes())
        return digest.hexdigest()

    def _neighbors(
        self, source: FeatureSource, labeled: Tensor, name: str
    ) -> tuple[NeighborHeads, list[bool]]:
        """The heads, and which know any video; the others answer anything."""
        count = len(self.entries[TRAIN])
        bank, there = pooled(source, labeled, count, self.encoder.device, self.group, name)
        truth = {t.name: t.learned(TRAIN).to(self.encoder.device) for t in self.targets}
        knows = [bool(there[rows].any()) for rows in self.labeled]
        known = [
            (rows[there[rows]] if any_there else rows).to(self.encoder.device)
            for rows, any_there in zip(self.labeled, knows, strict=True)
        ]
        heads = NeighborHeads(self.specs, bank, known, truth, self.settings.neighbors)
        return heads, knows

    def _scores(self, found: dict[str, Predictions], learned: list[bool]) -> list[Scores | None]:
        """Of every head, in their order; None of one that has learned from no video."""
        heads = zip(self.specs, places(self.specs), learned, strict=True)
        return [found[spec.target].scores(place) if its else None for spec, place, its in heads]

    @property
    def output(self) -> Path:
        """The folder of the results."""
        return output_of(self.settings, self.checkpoint)

    @property
    def work(self) -> Path:
        """The folder of what is needed while the probe runs."""
        return self.output / WORK


def output_of(settings: ProbeSettings, checkpoint: Checkpoint) -> Path:
    """The run's folder, or the checkpoint's own if it is in no run."""
    if settings.output:
        return settings.output
    in_run = checkpoint.folder.parent.name == "checkpoints"
    return checkpoint.folder.parents[1] if in_run else checkpoint.folder


def run_probe(settings: ProbeSettings, write: Callable[[Probing], None]) -> None:
    """Probe a checkpoint's features and those it is compared with. Collective under a launcher.

    All heads learn together from features that are read once in an epoch. What was computed is kept
    in `Probing.work` until the results are written, so the same call goes on where it was
    stopped.

    Args:
        settings: what is probed.
        write: what one process does with the results, before all leave.

    Raises:
        UserError: no such checkpoint, manifest or label; labels that do not fit; too many videos
            that do not decode; features that are not finite; a full disk.
    """
    group = join_processes()
    prepare_cpu(group.world)
    with PeerWatch(group, "go on where it was stopped"):
        probing = prepare(settings, group)
        with own_places(probing.output, settings.store, group):
            probing.run()
            for seen in group.all_gather(probing.sources.left_out):
                for split, rows in seen.items():
                    probing.sources.left_out.setdefault(split, {}).update(rows)
            if group.rank == 0:
                write(probing)
                shutil.rmtree(probing.work, ignore_errors=True)
            group.barrier()
    leave_processes(group)


def prepare(settings: ProbeSettings, group: HostGroup) -> Probing:
    """All that can be wrong before a feature is computed.

    Raises:
        UserError: see `run_probe`.
    """
    checkpoint = Checkpoint.find(settings.checkpoint.resolve())
    config = parse_config(translate_stored(checkpoint.state["config"]))
    manifests = _manifests(settings, checkpoint, config)
    entries = {split: open_manifest(path) for split, path in manifests.items()}
    images = _all_images(entries, settings.views.segments)
    targets = read_targets(settings.labels, entries)
    rows, validation = _split(settings, entries)
    specs, labeled = make_heads(targets, rows, settings.grid)
    encoder = load_encoder(
        checkpoint.folder, crop_size=settings.crop_size, num_frames=settings.num_frames
    )
    sampling = encoder.sampling
    if images and sampling.num_frames > 2 * encoder.model.patch_embed.tubelet_size:
        log.info(
            "%s: found images, each of which fills the %d frames of a clip; --num-frames %d sees "
            "as much and is faster",
            manifests[TRAIN],
            sampling.num_frames,
            encoder.model.patch_embed.tubelet_size,
        )
    data = config.data.model_copy(
        update={"crop_size": sampling.crop_size, "num_frames": sampling.num_frames}
    )
    sources = Sources(
        entries=entries,
        sampling=sampling,
        tubelet_size=encoder.model.patch_embed.tubelet_size,
        views=settings.views,
        pool="tokens" if settings.probe == "attentive" else "mean",
        store=settings.store,
        work=output_of(settings, checkpoint) / WORK,
        device=encoder.device,
        dtype=encoder.dtype,
        group=group,
        num_workers=settings.num_workers or data.num_workers,
        backend=data.backend,
        max_bad_fraction=data.max_bad_fraction,
        seed=settings.grid.seed,
    )
    return Probing(
        settings,
        checkpoint,
        config.model_copy(update={"data": data}),
        encoder,
        manifests,
        targets,
        specs,
        labeled,
        validation,
        sources,
        group,
    )


def _manifests(settings: ProbeSettings, checkpoint: Checkpoint, config: Config) -> dict[str, Path]:
    if settings.train is None and checkpoint.imported:
        raise UserError(
            f"--train: found none for {checkpoint.folder}, whose weights were imported from "
            f"{checkpoint.imported['file']} without videos, expected a manifest to train the probe "
            "on; name one"
        )
    train = settings.train or Path(config.data.manifests[0].path)
    found = {TRAIN: train, TEST: settings.test or test_manifest_beside(train)}
    if isinstance(settings.validation, Path):
        found[VALIDATION] = settings.validation
    return found


def _all_images(entries: dict[str, Entries], segments: int) -> bool:
    """Whether all videos are images.

    Raises:
        UserError: only those of some splits are; or several segments of an image are asked for.
    """
    images = {split: bool(its.images.all()) for split, its in entries.items()}
    train = entries[TRAIN].source
    for split, its in entries.items():
        if images[split] != images[TRAIN]:
            kinds = ("videos", "images")
            raise UserError(
                f"{its.source}: found {kinds[images[split]]}, expected {kinds[images[TRAIN]]}, as "
                f"in {train}; probe images and videos apart"
            )
    if images[TRAIN] and segments > 1:
        raise UserError(
            f"--segments: found {segments} for the images of {train}, expected 1, since an image "
            "is the same at all times; leave it out"
        )
    return images[TRAIN]


def _split(settings: ProbeSettings, entries: dict[str, Entries]) -> tuple[Tensor, Tensor | None]:
    """The rows of the training manifest to learn from, and the rows for validation."""
    count = len(entries[TRAIN])
    if VALIDATION in entries:
        return torch.arange(count), torch.arange(len(entries[VALIDATION]))
    share = settings.validation
    if share is None and settings.grid.choices > 1:
        share = DEFAULT_VALIDATION
    if share is None:
        return torch.arange(count), None
    outside = torch.from_numpy(held_out(count, share, settings.grid.seed))
    return (~outside).nonzero()[:, 0], outside.nonzero()[:, 0]
