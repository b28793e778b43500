"""Wraps model and AdamW in one DeepSpeed engine, configured from the typed sections."""

from __future__ import annotations

import logging

import deepspeed
import torch
from deepspeed.runtime.engine import DeepSpeedEngine
from torch import nn

from vjepa_fast.config.optim import ZeroConfig
from vjepa_fast.errors import UserError
from vjepa_fast.training.checkpoint.format import group_of

log = logging.getLogger("vjepa_fast")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Encoder and predictor, each as a group with and a group without weight decay.

    See `group_of`. The encoder has groups of its own, so that the EMA can be taken over their flat
    shards.

    Returns:
        Groups for a torch optimizer. Beside its own keys each has "name" (as in checkpoints, e.g.
        "encoder.no_decay"), "part" ("encoder" or "predictor"), whose gradients are clipped
        together, "decays", and "lr_factor", which multiplies the learning rate.
    """
    groups: dict[str, dict] = {}
    for name, parameter in model.named_parameters():
        group = group_of(name, parameter.ndim)
        decays = group.endswith(".decay")
        own = {
            "name": group,
            "part": group.partition(".")[0],
            "decays": decays,
            "lr_factor": 1.0,
            "weight_decay": weight_decay if decays else 0.0,
            "params": [],
        }
        groups.setdefault(own["name"], own)["params"].append(parameter)
    return list(groups.values())


def deepspeed_config(
    zero: ZeroConfig, *, micro_batch: int, accumulation: int, world: int, bf16: bool
) -> dict:
    """DeepSpeed's configuration, all of it derived.

    Stages 0 to 2 without offloading are our own (`bucketed.py`): for DeepSpeed they are stage 0 in
    fp32, whatever the model runs in. Otherwise gradients are accumulated and reduced in fp32 (by
    default DeepSpeed reduces them in the dtype of the weights). Clipping is off (it has to be
    written out, since DeepSpeed's default is a norm of 1): `optimizers.clip_gradients` clips
    encoder and predictor separately, as published.
    """
    ours = zero.stage < 3 and not zero.offload_optimizer
    ds = {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "train_batch_size": micro_batch * accumulation * world,
        "gradient_clipping": 0.0,
        "steps_per_print": 2**62,
        "timers": {"throughput": {"enabled": False}},  # has two host syncs per pass
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "bf16": {"enabled": bf16 and not ours},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    if ours:
        return ds
    if bf16:
        ds["bf16"]["check_grad_overflow"] = False  # has a host sync per step
    sharding = ds["zero_optimization"] = {
        "stage": zero.stage,
        "round_robin_gradients": False,  # keeps parameters in flat order
        "overlap_comm": False,
        "contiguous_gradients": False,
    }
    host = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if zero.offload_optimizer:
        sharding["offload_optimizer"] = host
    if zero.offload_parameters:
        sharding["offload_param"] = host
    if zero.stage == 3:
        sharding["sub_group_size"] = 2**62  # one flat partition for each parameter group
        # Biases and norms stay persistent: gathering them takes longer than keeping them.
        sharding["stage3_param_persistence_threshold"] = 10_000
    return ds


def make_engine(
    model: nn.Module,
    groups: list[dict],
    zero: ZeroConfig,
    *,
    betas: tuple[float, float],
    eps: float,
    micro_batch: int,
    accumulation: int,
    world: int,
    bf16: bool,
) -> DeepSpeedEngine:
    """Wrap the model and AdamW, over these parameter groups, in one DeepSpeed engine.

    A single process in fp32 runs as stage 0 at every stage, unless it offloads: the weights are
    the master weights, and ZeRO would only copy between the two.

    Raises:
        UserError: stage 0 with bf16: it keeps no fp32 master weights beside those it runs with.
    """
    if zero.stage == 0 and bf16:
        raise UserError(
            "zero.stage: found 0 with precision bf16, expected stage 1, 2 or 3, which keep fp32 "
            "master weights beside the bf16 ones; set zero.stage to 1, or precision to fp32"
        )
    offloads = zero.offload_optimizer or zero.offload_parameters
    if world == 1 and zero.stage and not (bf16 or offloads):
        log.info(
            "engine: one process in fp32 has nothing to shard, so stage %d runs as 0", zero.stage
        )
        zero = zero.model_copy(update={"stage": 0})
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=eps, fused=True)
    ds = deepspeed_config(
        zero, micro_batch=micro_batch, accumulation=accumulation, world=world, bf16=bf16
    )
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=ds)
    log.info(
        "engine: ZeRO stage %d, %s, %s, world size %d, %d x %d clips per rank and step",
        zero.stage,
        "bf16" if bf16 else "fp32",
        type(engine.optimizer).__name__,
        world,
        accumulation,
        micro_batch,
    )
    return engine
