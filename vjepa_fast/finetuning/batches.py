"""Clips and targets of each step on each rank, as pure functions of the step."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import torch

from vjepa_fast.config.finetune.schema import FinetuneConfig
from vjepa_fast.data.loader import ClipLoader
from vjepa_fast.data.manifest.entries import Entries
from vjepa_fast.data.manifest.entry import LABEL_PREFIX
from vjepa_fast.data.open_manifest import open_manifest
from vjepa_fast.data.plan.clip_plan import ClipBatch
from vjepa_fast.data.plan.crops import Augment
from vjepa_fast.data.plan.planner import ClipPlanner
from vjepa_fast.errors import UserError
from vjepa_fast.evaluation.labels.targets import TEST, TRAIN, Target, read_targets
from vjepa_fast.finetuning.augment import Augmenter
from vjepa_fast.finetuning.trainer import LabeledClips
from vjepa_fast.models.sequences import to_device
from vjepa_fast.training.batches import run_loader, split_evenly


class FinetuneBatches:
    """The micro-batches of one rank, from any step on.

    Clip i of a step has the sample id step · global batch + i; micro-batch j of rank r is the
    step's run j · world + r. So every world size sees the same global batches.

    Args:
        config: the run's config.
        rank: rank of this process.
        world: number of ranks.

    Attributes:
        test: the test videos.
        target: the classes that are learned.
        steps: steps of the run.
        micro_batch, accumulation: clips of a micro-batch; micro-batches of a step on each rank.

    Raises:
        UserError: a manifest or its labels cannot be used, torchvision is missing, or the batch
            does not split.
    """

    def __init__(self, config: FinetuneConfig, rank: int, world: int) -> None:
        self._config, self._rank, self._world = config, rank, world
        data, optim = config.data, config.optim
        group = config.clip_group
        self.micro_batch, self.accumulation = split_evenly(
            optim.global_batch, optim.micro_batch, world, lambda micro: micro % group == 0
        )
        train, self.test = open_manifest(data.train), open_manifest(data.test)
        _refuse_images(config, train, self.test)
        self.target = _target(config.label, train, self.test)
        self._planner = ClipPlanner(
            [train],
            num_frames=data.num_frames,
            frame_step=data.frame_step,
            fps=data.fps,
            augment=Augment(area=data.area, aspect_ratio=data.aspect_ratio, flip=data.flip),
            seed=config.seed,
            clips_per_video=data.clips_per_video,
        )
        self._augment = Augmenter(
            config.augment,
            self.target.outputs,
            optim.label_smoothing,
            data.clips_per_video,
            config.seed,
        )
        videos_per_step = optim.global_batch / data.clips_per_video
        self.steps = max(1, round(optim.epochs * len(train) / videos_per_step))

    @property
    def videos(self) -> str:
        """Hash of the training videos and of their labels."""
        column = self._planner.entries.column(f"{LABEL_PREFIX}{self._config.label}")
        return _hash_of(self._planner, column)

    @property
    def test_videos(self) -> str:
        """Hash of the test videos and of their classes."""
        data = self._config.data
        planner = ClipPlanner.in_order(
            self.test, num_frames=data.num_frames, frame_step=data.frame_step, fps=data.fps
        )
        return _hash_of(planner, self.target.truth[TEST].numpy())

    def sample_ids(self, step: int) -> list[np.ndarray]:
        """This rank's sample ids at a step, int64 [B] for each micro-batch."""
        batch = self._config.optim.global_batch
        ids = np.arange(step * batch, (step + 1) * batch).reshape(-1, self.micro_batch)
        return list(ids[self._rank :: self._world])

    def loader(self, first_step: int, device: torch.device) -> ClipLoader:
        """Clips of this rank's micro-batches from a step to the end of the run, decoded ahead."""
        steps = range(first_step, self.steps)
        ids = (ids for step in steps for ids in self.sample_ids(step))
        return run_loader(self._planner, ids, self._config.data, self._config.output, device)

    def step(self, step: int, clips: Iterator[ClipBatch]) -> Iterator[LabeledClips]:
        """This rank's micro-batches of one step, as the trainer takes them.

        Args:
            step: its number.
            clips: `loader`'s, at this step; one batch is taken for each micro-batch.
        """
        for ids in self.sample_ids(step):
            batch = next(clips)
            known = torch.tensor(self.target.classes)
            classes = torch.searchsorted(known, batch.labels[self._config.label])
            classes = to_device(classes, batch.video.device)
            yield LabeledClips(*self._augment(batch.video, classes, ids), ids)


def _hash_of(planner: ClipPlanner, classes: np.ndarray) -> str:
    digest = hashlib.sha256(planner.digest.encode())
    digest.update(np.ascontiguousarray(classes, dtype="<i8").tobytes())
    return digest.hexdigest()


def _target(label: str, train: Entries, test: Entries) -> Target:
    target = read_targets([label], {TRAIN: train, TEST: test})[0]
    if target.has_values:
        raise UserError(
            f"label: found {label}, of which {train.source} has values, expected a column of "
            f"classes, {LABEL_PREFIX}{label}; name another label"
        )
    return target


def _refuse_images(config: FinetuneConfig, *manifests: Entries) -> None:
    """An image is one clip of one segment."""
    for entries, key, found in zip(
        manifests,
        ("data.clips_per_video", "test.segments"),
        (config.data.clips_per_video, config.test.segments),
        strict=True,
    ):
        if entries.images.all() and found > 1:
            raise UserError(
                f"{key}: found {found}, but {entries.source} has only images, expected 1, since "
                f"all clips of an image are the same; set {key} to 1"
            )
