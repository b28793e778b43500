"""The two sides that bench/throughput.py compares, and the clips that both receive."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from step.baseline import BaselineTrainer, no_mark
from vjepa_fast.config import Config, load_config
from vjepa_fast.config.model import build_model
from vjepa_fast.data.loader import make_loader
from vjepa_fast.data.prepare.demo.write import make_demo
from vjepa_fast.errors import UserError
from vjepa_fast.masks import MaskBatch, MaskSampler
from vjepa_fast.training.batches import make_planner, make_sampler, packed
from vjepa_fast.training.build import build_trainer
from vjepa_fast.training.timers import TimedIterator

Mark = Callable[[str], None]
PARTS = ("masks", "target", "context", "predictor", "backward", "optimizer", "ema")
POOL = 4  # synthetic micro-batches
DEMO_BATCHES = 4  # micro-batches in the demo's files


def read_config(
    path: Path, batch: int | None, compiled: bool, stage: int | None, manifest: Path | None
) -> Config:
    """A config whose step is one micro-batch and one truncation group, of clips of one length, that
    of data.num_frames.

    Raises UserError for settings that contradict each other.
    """
    given = load_config(path)
    micro = batch or given.optim.micro_batch
    changes = {"optim.global_batch": micro, "optim.micro_batch": micro}
    changes["masks.truncate_group"] = micro
    if compiled:
        changes["compile"] = True
    if stage is not None:
        changes["zero.stage"] = stage
    if manifest is not None:
        changes |= {"data.manifests": [str(manifest)], "data.weights": None}
    elif len(given.data.lengths) > 1:
        changes["data.manifests"] = [manifest.path for manifest in given.data.manifests]
    config = load_config(path, [f"{key}={json.dumps(value)}" for key, value in changes.items()])
    if config.objective != "features":
        raise UserError(
            f"objective: found {config.objective}, expected features, which the baseline predicts; "
            "change it in a copy of the config"
        )
    if config.masks.truncate == "none":
        raise UserError(
            "masks.truncate: found 'none', expected 'batch', since the baseline needs equal token "
            "counts in all clips; change it in a copy of the config"
        )
    return config


def draw_masks(sampler: MaskSampler, step: int, clips: int) -> MaskBatch:
    """The masks of one step."""
    return sampler.sample(step, range(step * clips, (step + 1) * clips))


class _Marks:
    """Stands in for the trainer's `StepTimer` and passes the names of `PARTS` on to `mark`."""

    def __init__(self, mark: Mark) -> None:
        self._mark = mark

    def begin(self) -> None:
        """The first part, "masks", ended before the trainer's step began."""

    def mark(self, part: str) -> None:
        """A part of the trainer's step has ended. "data" is none of ours: the clips are there."""
        if part in PARTS:
            self._mark(part)


class Ours:
    """The shipped trainer. It draws its masks within the step."""

    name = "ours"

    def __init__(self, config: Config) -> None:
        self.trainer = build_trainer(config, 1)
        self.device = self.trainer.device
        self.clips = config.optim.micro_batch
        self.sampler = make_sampler(config)
        self.mask_token = config.mask_token(config.data.num_frames)

    def prepare(self, step: int) -> None:
        """Nothing is prepared outside the step."""

    def step(self, step: int, video: Tensor, masks: None, mark: Mark = no_mark) -> Tensor:
        """One step; the loss stays on the device."""
        trainer, timer = self.trainer, self.trainer.timer
        if mark is not no_mark:
            trainer.timer = _Marks(mark)
        try:
            masks = draw_masks(self.sampler, step, self.clips)
            packed_masks = packed(masks, self.device, self.mask_token)
            mark("masks")
            result = trainer.step([(video, packed_masks)])
        finally:
            trainer.timer = timer
        self.grad_norms = result.grad_norms
        return result.loss

    def ema(self) -> list[Tensor]:
        """The EMA weights in fp32."""
        return [t for group in self.trainer.teacher.ema.values() for t in group]

    def token_counts(self, step: int) -> tuple[list[list[int]], list[list[int]]]:
        """Context and target tokens of a step: a row for each clip, a column for each mask spec."""
        masks = draw_masks(self.sampler, step, self.clips)
        return masks.context_seqlens.T.tolist(), masks.target_seqlens.T.tolist()


class Baseline:
    """The plain-PyTorch trainer. Its masks are drawn outside the timed step, as by the data loader
    processes of public trainers."""

    name = "baseline"

    def __init__(
        self, config: Config, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        self.trainer = BaselineTrainer(config, build_model(config).state_dict(), device, dtype)
        self.device = device
        self.clips, self.specs = config.optim.micro_batch, len(config.masks.specs)
        self.sampler = make_sampler(config)

    def prepare(self, step: int) -> tuple[list[Tensor], list[Tensor]]:
        """Context and target tokens of each mask spec, int64 [B, K], on the host."""
        masks = draw_masks(self.sampler, step, self.clips)
        specs = range(self.specs)
        return [masks.context(i) for i in specs], [masks.target(i) for i in specs]

    def step(
        self,
        step: int,
        video: Tensor,
        masks: tuple[list[Tensor], list[Tensor]],
        mark: Mark = no_mark,
    ) -> float:
        """One step; the loss."""
        contexts, targets = ([t.to(self.device) for t in side] for side in masks)
        mark("masks")
        return self.trainer.step(video, contexts, targets, mark)

    @property
    def grad_norms(self) -> dict[str, Tensor]:
        """Gradient norms of the last step, before clipping."""
        return self.trainer.grad_norms

    def ema(self) -> list[Tensor]:
        """The EMA weights in fp32."""
        return list(self.trainer.teacher.parameters())


@contextmanager
def demo_manifest(clips: int) -> Iterator[Path]:
    """A manifest of a few demo videos in a temporary folder."""
    with TemporaryDirectory(prefix="vjepa_fast_bench_") as folder:
        workers = len(os.sched_getaffinity(0))
        train, _ = make_demo(folder, clips=DEMO_BATCHES * clips, test_clips=1, workers=workers)
        yield train


class Clips(Iterator[Tensor]):
    """An endless iterator of micro-batches on the device, uint8 [B, T, H, W, 3], that measures the
    time spent waiting for them."""

    def __init__(self, config: Config, device: torch.device, decodes: bool) -> None:
        data, clips = config.data, config.optim.micro_batch
        self._stack = ExitStack()
        if decodes:
            loader = make_loader(
                make_planner(config),
                (range(step * clips, (step + 1) * clips) for step in itertools.count()),
                data.crop_size,
                backend=data.backend,
                device=device,
                num_workers=data.num_workers,
                prefetch=data.prefetch,
            )
            self._stack.enter_context(loader)
            self._videos = TimedIterator(batch.video for batch in loader)
        else:
            shape = (clips, data.num_frames, data.crop_size, data.crop_size, 3)
            random = torch.Generator().manual_seed(config.seed)
            pool = [
                torch.randint(0, 256, shape, dtype=torch.uint8, generator=random).to(device)
                for _ in range(POOL)
            ]
            self._videos = TimedIterator(itertools.cycle(pool))

    def __next__(self) -> Tensor:
        return next(self._videos)

    def waited(self) -> float:
        """Seconds waited since the last call."""
        return self._videos.take()

    def close(self) -> None:
        """Stop decoding."""
        self._stack.close()
