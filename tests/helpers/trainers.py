"""A small trainer in this process, and random clips for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from vjepa_fast.config.optim import OptimConfig, ZeroConfig
from vjepa_fast.config.schema import CheckpointConfig
from vjepa_fast.masks import MaskSampler, MultiBlock
from vjepa_fast.models.jepa import VJEPA, Objective, build_vjepa
from vjepa_fast.models.sequences import PackedMasks
from vjepa_fast.training.batches import packed
from vjepa_fast.training.checkpoint.format import checkpoints
from vjepa_fast.training.checkpoint.writer import Saver
from vjepa_fast.training.distributed.host_group import HostGroup
from vjepa_fast.training.distributed.launch import init_process_group
from vjepa_fast.training.schedules import Schedules
from vjepa_fast.training.trainer import Trainer

GRID, CLIPS = (2, 3, 3), 4
SCHEDULES = Schedules(
    warmup_steps=2,
    horizon=20,
    start_lr=1e-4,
    peak_lr=1e-3,
    final_lr=1e-6,
    start_weight_decay=0.04,
    final_weight_decay=0.4,
    start_momentum=0.9,
    final_momentum=1.0,
)
# A config's model section in the first and in the second generation.
SECOND = {"positions": "rope_tiled", "mask_tokens": "shared", "depth_scaled_init": True}
GENERATIONS = [pytest.param({}, id="first"), pytest.param(SECOND, id="second")]
SLOW_SECOND = [GENERATIONS[0], pytest.param(SECOND, id="second", marks=pytest.mark.slow)]


def make_model(
    seed: int = 0,
    encoder_width: int = 24,
    second: bool = False,
    objective: Objective = "features",
) -> VJEPA:
    """Encoder and predictor with initial weights; `second`: of the second generation."""
    return build_vjepa(
        encoder={"width": encoder_width, "depth": 2, "heads": 2},
        predictor={"width": 12, "depth": 1, "heads": 2},
        grid=GRID,
        patch_size=8,
        tubelet_size=2,
        num_mask_tokens=1 if second else 2,
        positions="rope_tiled" if second else "sincos",
        depth_scaled_init=second,
        objective=objective,
        seed=seed,
    )


def make_trainer(
    stage: int = 1,
    bf16: bool = False,
    seed: int = 0,
    accumulation: int = 1,
    clip_grad: float | None = None,
    encoder_width: int = 24,
    clips: int = CLIPS,
    schedules: Schedules = SCHEDULES,
    frozen_teacher: dict[str, Tensor] | None = None,
    second: bool = False,
    loss_exponent: float = 1.0,
    objective: Objective = "features",
    **offload: bool,
) -> Trainer:
    """A trainer of the launcher's process group, or of one process without a launcher."""
    init_process_group()
    optim = OptimConfig(
        steps=20,
        global_batch=CLIPS,
        micro_batch=clips,
        lr=1e-3,
        warmup_steps=2,
        clip_grad=clip_grad,
        loss_exponent=loss_exponent,
    )
    return Trainer(
        make_model(seed, encoder_width, second, objective),
        schedules,
        optim,
        ZeroConfig(stage=stage, **offload),
        micro_batch=clips,
        accumulation=accumulation,
        bf16=bf16,
        frozen_teacher=frozen_teacher,
        objective=objective,
    )


def micro_batch(
    step: int, rank: int = 0, world: int = 1, device: str = "cpu", second: bool = False
) -> tuple[Tensor, PackedMasks]:
    """Random clips and their masks, a function of the step; this rank's part of them.

    With `second` all specs share a mask token, as in the second generation.
    """
    specs = [MultiBlock(2, (0.3, 0.3)), MultiBlock(1, (0.6, 0.6))]
    sampler = MaskSampler(specs, grid=GRID, truncate_group=CLIPS)
    clips = CLIPS // world
    first = step * CLIPS + rank * clips
    masks = sampler.sample(step, range(first, first + clips))
    generator = torch.Generator().manual_seed(step)
    shape = (CLIPS, 4, 24, 24, 3)
    video = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    mine = video[rank * clips : (rank + 1) * clips].to(device)
    return mine, packed(masks, torch.device(device), 0 if second else None)


def save_checkpoint(trainer: Trainer, run: Path, keep_last: int = 2, **policy: object) -> Path:
    """Save as the loop does; returns the checkpoint's folder."""
    saver = Saver(run, {}, "videos", CheckpointConfig(keep_last=keep_last, **policy), HostGroup())
    saver.save(trainer)
    saver.close()
    return checkpoints(run)[-1]


def run_steps(trainer: Trainer, first: int, last: int) -> list[Tensor]:
    """Losses of steps first … last - 1."""
    second = trainer.model.encoder.rotary_form is not None
    batches = ([micro_batch(step, second=second)] for step in range(first, last))
    return [trainer.step(batch).loss for batch in batches]
