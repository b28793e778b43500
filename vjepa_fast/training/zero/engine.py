"""DeepSpeed, configured once from plain numbers."""

from __future__ import annotations

import logging

import deepspeed
import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.engine import DeepSpeedEngine
from torch import nn

from vjepa_fast.errors import UserError

log = logging.getLogger("vjepa_fast")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Encoder and predictor apart, each in a decaying and a non-decaying group.

    Matrices decay; one-dimensional tensors (biases, norms) do not. The mask tokens do: they are
    three-dimensional in the published code. The encoder's groups stand alone, so that their flat
    shards are what the teacher averages.
    """
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        decays = "decay" if parameter.ndim >= 2 else "no_decay"
        groups.setdefault(f"{name.partition('.')[0]}.{decays}", []).append(parameter)
    return [
        {
            "name": name,
            "params": parameters,
            "weight_decay": 0.0 if name.endswith("no_decay") else weight_decay,
        }
        for name, parameters in groups.items()
    ]


def deepspeed_config(
    *,
    micro_batch: int,
    accumulation: int,
    world: int,
    stage: int,
    bf16: bool,
    offload_optimizer: bool = False,
    offload_parameters: bool = False,
) -> dict:
    """DeepSpeed's dict. Everything in it is derived; nothing of it is written by the user.

    Gradients accumulate and travel in fp32 (by default DeepSpeed would reduce them in bf16, as it
    computes). Clipping is off here (written out, since DeepSpeed would clip to 1
    by default): `shards.clip_gradients` clips encoder and predictor apart, as published.
    """
    ds = {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "train_batch_size": micro_batch * accumulation * world,
        "gradient_clipping": 0.0,
        "steps_per_print": 2**62,
        "timers": {"throughput": {"enabled": False}},  # would wait for the device twice a pass
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "bf16": {"enabled": bf16},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    if bf16:
        ds["bf16"]["check_grad_overflow"] = False  # would wait for the device every step
        ds["bf16"]["immediate_grad_update"] = True  # to fp32, and the bf16 gradient is freed
    if stage:
        ds["zero_optimization"] = {
            "stage": stage,
            "round_robin_gradients": False,  # keeps parameters in flat order
            "overlap_comm": False,
            "contiguous_gradients": False,
        }
        zero = ds["zero_optimization"]
        host = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
        if offload_optimizer:
            zero["offload_optimizer"] = host
        if offload_parameters:
            zero["offload_param"] = host
        if stage == 3:
            zero["sub_group_size"] = 2**62  # one flat partition for each parameter group
            # Biases and norms stay whole: to gather them takes longer than to keep them.
            zero["stage3_param_persistence_threshold"] = 10_000
        if (stage == 2 or (stage == 1 and not bf16)) and not offload_optimizer:
            # Its norm would wait for the device every step, and we take our own. Stage 1 in bf16
            # is BF16_Optimizer, see guard.py.
            zero["compute_grad_norm"] = False
    return ds


def make_engine(
    model: nn.Module,
    *,
    micro_batch: int,
    accumulation: int,
    world: int,
    stage: int,
    bf16: bool,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    offload_optimizer: bool = False,
    offload_parameters: bool = False,
) -> DeepSpeedEngine:
    """Wrap the model (encoder + predictor) and AdamW in one DeepSpeed engine.

    One process in fp32 steps as at stage 0 whatever the stage, unless it offloads: the weights are
    the masters, and ZeRO would only copy them to and fro.

    Raises:
        UserError: stage 0 with bf16, which DeepSpeed can only accumulate in bf16.
    """
    if stage == 0 and bf16:
        raise UserError(
            "zero.stage: found 0 with precision bf16, where DeepSpeed would accumulate gradients "
            "in bf16 and step without fp32 masters; set zero.stage to 1, or precision to fp32"
        )
    if world == 1 and stage and not (bf16 or offload_optimizer or offload_parameters):
        log.info("engine: one process in fp32 has nothing to share: stage 0 instead of %d", stage)
        stage = 0
    optimizer = torch.optim.AdamW(
        parameter_groups(model, weight_decay), lr=0.0, betas=betas, eps=eps, fused=True
    )
    ds = deepspeed_config(
        micro_batch=micro_batch,
        accumulation=accumulation,
        world=world,
        stage=stage,
        bf16=bf16,
        offload_optimizer=offload_optimizer,
        offload_parameters=offload_parameters,
    )
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=ds)
    if isinstance(engine.optimizer, BF16_Optimizer) or (world == 1 and stage == 0):
        # It would copy all gradients to and fro, even over one rank: see `shards.reduce_gradients`.
        engine.enable_backward_allreduce = False
    log.info(
        "engine: ZeRO stage %d, %s, %s, world %d, %d x %d clips a rank",
        stage,
        "bf16" if bf16 else "fp32",
        type(engine.optimizer).__name__,
        world,
        accumulation,
        micro_batch,
    )
    return engine
