"""Runs every ZeRO stage in one launch, and a plain loop as their reference.

Each process of a group runs this file as a program: it trains the cases that are given as JSON on
the command line and prints its results. Tests call `launch`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from tests.helpers.ranks import run_ranks
from tests.helpers.trainers import CLIPS, SCHEDULES, make_model, make_trainer, micro_batch
from tests.rounding.plain_training import SQUARES, train_plainly
from vjepa_fast.models.sequences import PackedMasks
from vjepa_fast.training.distributed.launch import end_process_group, init_process_group
from vjepa_fast.training.trainer import Trainer
from vjepa_fast.training.zero import shards
from vjepa_fast.training.zero.shards import GroupShard

WIDTH = 72  # its larger matrices are above the size that is persistent at stage 3
CLIP_GRAD = 0.05  # below the predictor's norm
# All methods that move tensors, whoever calls them through torch.distributed.
COLLECTIVES = [
    name
    for name in vars(ProcessGroup)
    if re.match(
        "_?(all_?gather|all_?reduce|all_?to|broadcast|gather|recv|reduce|scatter|send)", name
    )
]


def plain_loop(
    steps: int, dtype: torch.dtype = torch.float32, second: bool = False
) -> tuple[list[list[float]], dict[str, Tensor]]:
    """Losses and gradient norms of each step, and weights, of a loop without DeepSpeed. `second`:
    of the second generation."""
    model = make_model(0, WIDTH, second).to(dtype)
    batches = ([micro_batch(step, second=second)] for step in range(steps))
    return train_plainly(model, replace(SCHEDULES, horizon=steps), batches, CLIP_GRAD)


def unsharded(shard: GroupShard, tensors: list[Tensor]) -> Tensor:
    """The group's flat vector, of which each rank holds a shard."""
    mine = [(r.start, r.count) for r in shard.ranges], shard.read(tensors)
    shards = [None] * dist.get_world_size()
    dist.all_gather_object(shards, mine)
    flat = torch.full((shard.size,), float("nan"))
    for ranges, values in shards:
        for (start, count), piece in zip(
            ranges, values.split([count for _, count in ranges]), strict=True
        ):
            flat[start : start + count] = piece
    return flat


def _bytes(argument: object) -> int:
    if isinstance(argument, Tensor):
        return argument.nbytes
    return sum(map(_bytes, argument)) if isinstance(argument, list) else 0


@contextmanager
def count_communication(trainer: Trainer) -> Iterator[tuple[dict[str, int], dict[str, int]]]:
    """Counts bytes and calls of collectives, by caller ("student", "teacher") and kind.

    Bytes are those of a collective's larger side: a gather's result, a reduction's operand.
    """
    found: dict[str, int] = {}
    calls: dict[str, int] = {}
    caller = "student"
    originals = {name: vars(ProcessGroup)[name] for name in COLLECTIVES}
    update = trainer.teacher.update

    def counting(name: str, call: Callable) -> Callable:
        def wrapped(*args, **kwargs):
            key = f"{caller} {name}"
            size = max(map(_bytes, (*args, *kwargs.values())))
            found[key] = found.get(key, 0) + size
            calls[key] = calls.get(key, 0) + 1
            return call(*args, **kwargs)

        return wrapped

    def updating(*args, **kwargs) -> None:
        nonlocal caller
        caller = "teacher"
        update(*args, **kwargs)
        caller = "student"

    for name, call in originals.items():
        setattr(ProcessGroup, name, counting(name, call))
    trainer.teacher.update = updating
    try:
        yield found, calls
    finally:
        trainer.teacher.update = update
        for name, call in originals.items():
            setattr(ProcessGroup, name, call)


def run_case(case: dict, steps: int) -> dict:
    """Train one case. Collective.

    Args:
        case: arguments of `make_trainer`; with "many_buckets" each bucket holds a few parameters.
        steps: to train.
    """
    with pytest.MonkeyPatch.context() as patch:
        if case.get("many_buckets"):
            patch.setattr(shards, "SMALLEST", 1 << 11)
            patch.setattr(shards, "BUCKETS", 1 << 20)
            patch.setattr(shards, "SLICE", 1)
        return _run_case({k: v for k, v in case.items() if k != "many_buckets"}, steps)


def _run_case(case: dict, steps: int) -> dict:
    rank, world = dist.get_rank(), dist.get_world_size()
    second, accumulation = case.get("second", False), case.get("accumulation", 1)
    schedules = replace(SCHEDULES, horizon=steps)

    def batch_of(step: int) -> list[tuple[Tensor, PackedMasks]]:
        parts = world * accumulation
        own = (i * world + rank for i in range(accumulation))
        return [micro_batch(step, part, parts, second=second) for part in own]

    def make(**others) -> Trainer:
        return make_trainer(
            encoder_width=WIDTH,
            clip_grad=CLIP_GRAD,
            clips=CLIPS // world // accumulation,
            schedules=schedules,
            **SQUARES,
            **case,
            **others,
        )

    trainer = make()
    followed = trainer.teacher.shards
    emas = [unsharded(s, list(s.masters)) for s in followed]
    found, gap = [], 0.0
    for step in range(steps):
        result = trainer.step(batch_of(step))
        norms = [norm.item() for norm in result.grad_norms.values()]
        found.append([result.global_loss().item(), *norms])
        for ema, shard in zip(emas, followed, strict=True):
            ema.lerp_(unsharded(shard, list(shard.masters)), 1 - schedules.momentum(step))
    own = dict(trainer.teacher.network().named_parameters())
    encoder, names = {}, _encoder_names()
    for ema, shard in zip(emas, followed, strict=True):
        network = torch.cat([own[name].reshape(-1) for name in names[shard.name]])
        gap = max(gap, (network - ema.to(network.dtype)).abs().max().item())
        encoder[shard.name] = unsharded(shard, list(shard.masters)).double().norm().item()
    batch = batch_of(steps)
    with count_communication(trainer) as (moved, calls):
        trainer.step(batch)
    in_flight = trainer.teacher.pending
    frozen = make(frozen_teacher={name: p.float() for name, p in own.items()})
    for _ in range(3):  # at stage 3 the first steps record the order of the weights
        frozen.step(batch)
    with count_communication(frozen) as (moved_frozen, _):
        frozen.step(batch)
    return {
        "class": type(trainer.engine.optimizer).__name__,
        "steps": found,
        "teacher_gap": gap,
        "norms": encoder,
        "bytes": moved,
        "calls": calls,
        "gather_in_flight": in_flight,
        "bytes_frozen": moved_frozen,
    }


def _encoder_names() -> dict[str, list[str]]:
    """The encoder's parameters by group, in the model's order."""
    groups: dict[str, list[str]] = {}
    for name, p in make_model(0, WIDTH).encoder.named_parameters():
        groups.setdefault("encoder." + ("decay" if p.ndim > 1 else "no_decay"), []).append(name)
    return groups


def launch(cases: list[dict], steps: int, world: int) -> list[list[dict]]:
    """Results of each case, for each process."""
    return run_ranks([__file__, json.dumps([cases, steps])], world, seconds=1800)


if __name__ == "__main__":
    torch.set_num_threads(1)
    init_process_group()
    all_cases, number = json.loads(sys.argv[1])
    print("FOUND" + json.dumps([run_case(case, number) for case in all_cases]), flush=True)
    end_process_group()
