"""Builds the model and the trainer that a config asks for."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from vjepa_fast.config import Config
from vjepa_fast.config.model import build_model
from vjepa_fast.errors import UserError
from vjepa_fast.training.batches import split_batch
from vjepa_fast.training.checkpoint.format import Checkpoint
from vjepa_fast.training.recipe import model_changes, stored_config
from vjepa_fast.training.schedules import make_schedules
from vjepa_fast.training.trainer import Trainer


def with_pinned_teacher(config: Config) -> Config:
    """Replace a run in `teacher.checkpoint` by its newest checkpoint.

    So a resumed run keeps its teacher; a newer checkpoint of that run would be another recipe.

    Raises:
        UserError: no such checkpoint.
    """
    if config.teacher.checkpoint is None:
        return config
    folder = Checkpoint.find(Path(config.teacher.checkpoint)).folder
    teacher = config.teacher.model_copy(update={"checkpoint": str(folder)})
    return config.model_copy(update={"teacher": teacher})


def frozen_teacher(config: Config) -> dict[str, Tensor] | None:
    """The target encoder's weights by name, fp32, from `teacher.checkpoint`; None for an EMA.

    Raises:
        UserError: no such checkpoint, or one of another encoder.
    """
    if config.teacher.checkpoint is None:
        return None
    checkpoint = Checkpoint.find(Path(config.teacher.checkpoint))
    saved = stored_config(checkpoint.state["config"], checkpoint.folder).model
    changed = model_changes(saved, config.model, encoder_only=True)
    if changed:
        raise UserError(
            f"teacher.checkpoint: found {checkpoint.folder} of another encoder "
            f"({'; '.join(changed)}), expected the encoder of this run; set these keys back, or "
            "name another checkpoint"
        )
    return checkpoint.weights("encoder", checkpoint.result_weights)


def build_trainer(config: Config, world: int) -> Trainer:
    """Model, optimizer and teacher on this rank's device. Collective.

    Raises:
        UserError: the batch does not split, or see `frozen_teacher` and `Trainer`.
    """
    # fp32 means fp32, no TF32: it serves as the reference. In bf16 no GEMM is in fp32.
    torch.set_float32_matmul_precision("highest")
    micro_batch, accumulation = split_batch(config, world)
    teacher_weights = frozen_teacher(config)
    model = build_model(config)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    trainer = Trainer(
        model,
        make_schedules(config),
        config.optim,
        config.zero,
        micro_batch=micro_batch,
        accumulation=accumulation,
        bf16=config.precision_on(device) == "bf16",
        frozen_teacher=teacher_weights,
        objective=config.objective,
    )
    if config.compile:
        networks = [model.encoder, model.predictor]
        if trainer.teacher:
            networks.append(trainer.teacher.network())
        for block in chain.from_iterable(network.blocks for network in networks):
            # not the call, whose hooks wait for weights
            block.forward = torch.compile(block.forward, dynamic=True)
    return trainer
