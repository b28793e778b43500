"""Trainers of whole models on the device, and batches for them; one process group a process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
from deepspeed.runtime.zero import partitioned_param_coordinator
from torch import Tensor

from tests.fake_cuda.device import kernels_compiled
from tests.helpers.paths import REPOSITORY
from vjepa_fast.config import Config, load_config
from vjepa_fast.config.masks import sample_masks
from vjepa_fast.models import attention
from vjepa_fast.models.sequences import PackedMasks
from vjepa_fast.training.batches import make_sampler, packed
from vjepa_fast.training.build import build_trainer
from vjepa_fast.training.distributed.launch import init_process_group
from vjepa_fast.training.trainer import Trainer

# Processes of the run. Only rank 0 is there: NCCL's calls succeed without the others.
WORLD = int(os.environ.get("FAKE_CUDA_WORLD", "1"))


def config_of(name: str, accumulation: int = 2, micro_batch: int = 4, **changes: object) -> Config:
    """configs/<name>.json with a small global batch."""
    batch = {
        "optim.micro_batch": micro_batch,
        "optim.global_batch": WORLD * accumulation * micro_batch,
        "masks.truncate_group": micro_batch,
    }
    settings = [f"{key}={value}" for key, value in (batch | changes).items()]
    return load_config(REPOSITORY / "configs" / f"{name}.json", settings)


@contextmanager
def prepared() -> Iterator[dict[str, set[tuple]]]:
    """What a step needs on a device that computes nothing; yields `kernels_compiled`'s record.

    Initial weights are left out, which are drawn on the host. The trial of an attention backend
    finds wrong values, which is as good as right ones here. Stage 3 compares lists between the
    ranks by numbers that it reads from the device.
    """
    trial = attention._error

    def ran(*arguments) -> str | None:
        reason = trial(*arguments)
        return None if reason == "wrong values" else reason

    with pytest.MonkeyPatch.context() as patch, kernels_compiled() as kernels:
        for name in ("trunc_normal_", "kaiming_uniform_", "uniform_"):
            patch.setattr(torch.nn.init, name, lambda tensor, *_, **__: tensor)
        patch.setattr(attention, "_error", ran)
        patch.setattr(partitioned_param_coordinator, "assert_ints_same_as_other_ranks", list)
        yield kernels


def trainer_of(config: Config) -> Trainer:
    if not dist.is_initialized():
        if WORLD > 1:
            dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=WORLD)
            ranks = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": WORLD, "LOCAL_WORLD_SIZE": 1}
            address = {"MASTER_ADDR": "localhost", "MASTER_PORT": 29500}
            os.environ.update({name: str(value) for name, value in (ranks | address).items()})
        init_process_group()
    return build_trainer(config, WORLD)


def batches_of(config: Config, trainer: Trainer, step: int) -> list[tuple[Tensor, PackedMasks]]:
    """The step's micro-batches of rank 0, as `Batches.step` gives them."""
    data, sampler = config.data, make_sampler(config)
    shape = (trainer.micro_batch, data.num_frames, data.crop_size, data.crop_size, 3)
    found = []
    for micro in range(trainer.accumulation):
        first = step * config.optim.global_batch + micro * trainer.micro_batch
        masks = sample_masks(sampler, step, range(first, first + trainer.micro_batch))
        video = torch.zeros(shape, dtype=torch.uint8, device=trainer.device)
        found.append((video, packed(masks, video.device, config.mask_token(data.num_frames))))
    return found
