"""From a config to the model and the trainer."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from vjepa_fast.config import Config
from vjepa_fast.config.model import build_model
from vjepa_fast.errors import UserError
from vjepa_fast.models.jepa import VJEPA
from vjepa_fast.training.batches import split_batch
from vjepa_fast.training.checkpoint.format import Checkpoint
from vjepa_fast.training.schedules import Schedules
from vjepa_fast.training.trainer import Trainer


def with_pinned_teacher(config: Config) -> Config:
    """Where `teacher.checkpoint` is a run, name its newest checkpoint instead: going on later, with
    another one that the run has made since, would be another recipe.

    Raises:
        UserError: no such checkpoint.
    """
    if config.teacher.checkpoint is None:
        return config
    folder = Checkpoint.find(Path(config.teacher.checkpoint)).folder
    teacher = config.teacher.model_copy(update={"checkpoint": str(folder)})
    return config.model_copy(update={"teacher": teacher})


def frozen_teacher(config: Config, model: VJEPA) -> dict[str, Tensor] | None:
    """The weights of `teacher.checkpoint`'s target encoder, by name; None if it is averaged.

    Raises:
        UserError: no such checkpoint, or one of another encoder.
    """
    if config.teacher.checkpoint is None:
        return None
    checkpoint = Checkpoint.find(Path(config.teacher.checkpoint))
    weights = checkpoint.weights("encoder", checkpoint.result_weights)
    own = {name: tuple(p.shape) for name, p in model.encoder.named_parameters()}
    saved = {name: tuple(w.shape) for name, w in weights.items()}
    for name in sorted(own.keys() | saved.keys()):
        found, expected = saved.get(name), own.get(name)
        if found != expected:
            raise UserError(
                f"teacher.checkpoint: found {name} of shape {found or 'none'} in "
                f"{checkpoint.folder}, expected {expected or 'none'} as model.encoder has it; set "
                "model as the checkpoint's state.json has it"
            )
    return weights


def make_schedules(config: Config) -> Schedules:
    """The run's schedules, whose horizon is `optim.schedule_stretch * optim.steps`."""
    optim = config.optim
    return Schedules(
        warmup_steps=optim.warmup_steps,
        horizon=optim.schedule_stretch * optim.steps,
        start_lr=optim.start_lr,
        lr=optim.lr,
        final_lr=optim.final_lr,
        weight_decay=optim.weight_decay,
        final_weight_decay=optim.final_weight_decay,
        momentum=config.teacher.momentum,
    )


def build_trainer(config: Config, world: int) -> Trainer:
    """Model, optimiser and teacher on this rank's device."""
    # fp32 means fp32, no TF32: it is there to compare with. In bf16 no product is in fp32.
    torch.set_float32_matmul_precision("highest")
    micro_batch, accumulation = split_batch(config, world)
    model = build_model(config)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    optim = config.optim
    frozen = frozen_teacher(config, model)
    trainer = Trainer(
        model,
        make_schedules(config),
        micro_batch=micro_batch,
        accumulation=accumulation,
        stage=config.zero.stage,
        bf16=config.precision_on(device) == "bf16",
        betas=optim.betas,
        eps=optim.eps,
        clip_grad=optim.clip_grad,
        offload_optimizer=config.zero.offload_optimizer,
        offload_parameters=config.zero.offload_parameters,
        frozen_teacher=frozen,
    )
    if config.compile:
        target = trainer.teacher.encoder
        for block in (*model.encoder.blocks, *model.predictor.blocks, *target.blocks):
            block.compile(dynamic=True)
    return trainer
