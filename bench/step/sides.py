"""The two sides that bench/throughput.py times, and the clips that both are fed with."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

import torch
from step.baseline import Baseline, nothing
from torch import Tensor

from vjepa_fast.config import Config, load_config
from vjepa_fast.config.model import build_model
from vjepa_fast.data.loader import make_loader
from vjepa_fast.data.prepare.demo import make_demo
from vjepa_fast.errors import UserError
from vjepa_fast.masks import MaskBatch, MaskSampler
from vjepa_fast.training.batches import make_planner, make_sampler, packed
from vjepa_fast.training.build import build_trainer
from vjepa_fast.training.timers import TimedIterator

Mark = Callable[[str], None]
PARTS = ("masks", "target", "context", "predictor", "backward", "optimiser", "EMA")
POOL = 4  # synthetic micro-batches
DEMO_BATCHES = 4  # micro-batches that the demo's files make


def read_config(
    path: Path, batch: int | None, compiled: bool, stage: int | None, manifest: Path | None
) -> Config:
    """A config whose step is one micro-batch, of one truncation group.

    Raises UserError for whatever does not fit together.
    """
    micro = batch or load_config(path).optim.micro_batch
    changes = {"optim.global_batch": micro, "optim.micro_batch": micro}
    changes["masks.truncate_group"] = micro
    if compiled:
        changes["compile"] = True
    if stage is not None:
        changes["zero.stage"] = stage
    if manifest is not None:
        changes |= {"data.manifests": [str(manifest)], "data.weights": None}
    config = load_config(path, [f"{key}={json.dumps(value)}" for key, value in changes.items()])
    if config.masks.truncate == "none":
        raise UserError(
            "masks.truncate: found 'none', which leaves clips of unequal lengths, expected 'batch' "
            "for the baseline's passes, which take equal ones; change it in a copy of the config"
        )
    return config


def draw_masks(sampler: MaskSampler, number: int, clips: int) -> MaskBatch:
    """The masks of step `number`."""
    return sampler.sample(number, range(number * clips, (number + 1) * clips))


class _Marks:
    """Stands in for the trainer's `StepTimer`, and calls `mark` with our names of the parts."""

    NAMES: ClassVar = {name: name for name in PARTS} | {"optimizer": "optimiser", "ema": "EMA"}

    def __init__(self, mark: Mark) -> None:
        self._mark = mark

    def begin(self) -> None:
        """The masks were drawn before."""

    def mark(self, part: str) -> None:
        """A part of the trainer's step has ended; its wait for data is none here."""
        if part in self.NAMES:
            self._mark(self.NAMES[part])


class Ours:
    """The shipped trainer, and its masks, which are drawn within the step."""

    name = "ours"

    def __init__(self, config: Config) -> None:
        self.trainer = build_trainer(config, 1)
        self.device = self.trainer.device
        self.clips = config.optim.micro_batch
        self.sampler = make_sampler(config)

    def prepare(self, number: int) -> None:
        """Nothing is made beside the step."""

    def step(self, number: int, video: Tensor, ready: None, mark: Mark = nothing) -> Tensor:
        """One step; the loss stays on the device."""
        masks = packed(draw_masks(self.sampler, number, self.clips), self.device)
        mark("masks")
        result = self.trainer.step([(video, masks)])
        self.grad_norms = result.grad_norms
        return result.loss

    def averages(self) -> list[Tensor]:
        """The target encoder's weights in fp32."""
        return [t for group in self.trainer.teacher.ema.values() for t in group]

    @contextmanager
    def marked(self, mark: Mark) -> Iterator[None]:
        """Within this context the trainer's steps call `mark` as each of their parts ends."""
        trainer, own = self.trainer, self.trainer.timer
        trainer.timer = _Marks(mark)
        try:
            yield
        finally:
            trainer.timer = own


class Plain:
    """The straightforward implementation. Its masks come from the data loader's processes, as
    public trainers have it, so that drawing them costs the step nothing."""

    name = "baseline"

    def __init__(self, config: Config, device: torch.device) -> None:
        self.baseline = Baseline(config, build_model(config).state_dict(), device)
        self.device = device
        self.clips, self.specs = config.optim.micro_batch, len(config.masks.specs)
        self.sampler = make_sampler(config)

    def prepare(self, number: int) -> tuple[list[Tensor], list[Tensor]]:
        """Context and target tokens of each mask spec, [B, K], on the host."""
        m = draw_masks(self.sampler, number, self.clips)
        specs = range(self.specs)
        return [m.context(i) for i in specs], [m.target(i) for i in specs]

    def step(
        self,
        number: int,
        video: Tensor,
        ready: tuple[list[Tensor], list[Tensor]],
        mark: Mark = nothing,
    ) -> float:
        """One step; the loss."""
        contexts, targets = ([t.to(self.device) for t in side] for side in ready)
        mark("masks")
        return self.baseline.step(video, contexts, targets, mark)

    @property
    def grad_norms(self) -> dict[str, Tensor]:
        """Before clipping, of the last step."""
        return self.baseline.grad_norms

    def averages(self) -> list[Tensor]:
        """The target encoder's weights."""
        return list(self.baseline.teacher.parameters())

    @contextmanager
    def marked(self, mark: Mark) -> Iterator[None]:
        """Its steps mark their parts without help."""
        yield


@contextmanager
def demo_manifest(clips: int) -> Iterator[Path]:
    """A few of the demo's video files, in a temporary folder."""
    with TemporaryDirectory(prefix="vjepa_fast_bench_") as folder:
        workers = len(os.sched_getaffinity(0))
        train, _ = make_demo(folder, clips=DEMO_BATCHES * clips, test_clips=1, workers=workers)
        yield train


class Clips(Iterator[Tensor]):
    """Micro-batches of video on the device, without end, and the seconds spent waiting for them."""

    def __init__(self, config: Config, device: torch.device, decodes: bool) -> None:
        data, clips = config.data, config.optim.micro_batch
        self._stack = ExitStack()
        if decodes:
            loader = make_loader(
                make_planner(config),
                (range(n * clips, (n + 1) * clips) for n in itertools.count()),
                data.crop_size,
                backend=data.backend,
                device=device,
                num_threads=data.num_workers,
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
