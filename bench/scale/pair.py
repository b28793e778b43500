"""One of the two processes of bench/overlap.py: trains as it is told on its standard input.

Each line is a task, answered by one line of JSON on the standard output. Both processes get the
same tasks at the same time.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # bench/, as for its commands

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from itertools import islice, pairwise
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from scale.check import micro_batches
from vjepa_fast.config import Config, load_config
from vjepa_fast.config.model import build_model
from vjepa_fast.models.jepa import encode_clips, feature_loss
from vjepa_fast.models.sequences import PackedMasks
from vjepa_fast.training.build import build_trainer
from vjepa_fast.training.distributed.cpu import prepare_cpu
from vjepa_fast.training.distributed.launch import end_process_group, init_process_group
from vjepa_fast.training.schedules import make_schedules
from vjepa_fast.training.trainer import Trainer

WORLD, STEPS = 2, 3
LIMIT = 1e-4  # relative difference of losses and gradient norms from the plain loop, in fp32
COLLECTIVES = "all_gather_into_tensor", "all_reduce", "all_to_all_single"
Batch = list[tuple[Tensor, PackedMasks]]


class Done:
    """What a collective returns that has moved nothing."""

    def wait(self) -> None:
        """Nothing."""


@contextmanager
def no_communication() -> Iterator[list[float]]:
    """Collectives return at once. Yields seconds to subtract: for copies that stand for what other
    ranks would have sent, since gradients must stay finite."""
    copying: list[float] = []

    def nothing(*_: object, **__: object) -> Done:
        return Done()

    def exchange(received: Tensor, sent: Tensor, **_: object) -> Done:
        start = time.perf_counter()
        received.copy_(sent)
        copying.append(time.perf_counter() - start)
        return Done()

    fakes = dict.fromkeys(COLLECTIVES, nothing) | {"all_to_all_single": exchange}
    with patch.multiple(dist, **fakes):
        yield copying


@contextmanager
def recorded() -> Iterator[list[Callable[[], dist.Work]]]:
    """The collectives that are called, to be called again on tensors of their own."""
    found: list[Callable[[], dist.Work]] = []

    def recording(call: Callable) -> Callable:
        def wrapped(*tensors: object, **options: object) -> object:
            own = [t.clone() if isinstance(t, Tensor) else t for t in tensors]
            found.append(partial(call, *own, **options | {"async_op": True}))
            return call(*tensors, **options)

        return wrapped

    with patch.multiple(dist, **{name: recording(getattr(dist, name)) for name in COLLECTIVES}):
        yield found


def one_after_another(trainer: Trainer) -> None:
    """As without overlap: nothing is reduced before the end of the backward pass, and a step ends
    with the student's weights. The target encoder is gathered behind what follows."""
    optimizer = trainer.optimizer
    begin, share = optimizer.begin_backward, optimizer.share_weights
    optimizer.begin_backward = lambda first, last: begin(first, last=False)

    def share_and_wait() -> None:
        share()
        optimizer.wait_for_weights()

    optimizer.share_weights = share_and_wait


def settle(trainer: Trainer) -> None:
    """Wait for all that the last step has begun."""
    trainer.optimizer.wait_for_weights()
    trainer.teacher.network()
    dist.barrier()


def seconds_per_step(trainer: Trainer, batch: Batch) -> float:
    """Mean of `STEPS` steps that follow another one, from end to end."""
    dist.barrier()
    ends = []
    for _ in range(1 + STEPS):
        trainer.step(batch)
        ends.append(time.perf_counter())
    settle(trainer)
    return float(np.mean([b - a for a, b in pairwise(ends)]))


def compute_seconds(trainer: Trainer, batch: Batch) -> float:
    """The same, without communication. Then the weights of both processes differ."""
    with no_communication() as copying:
        seconds = seconds_per_step(trainer, batch)
    settle(trainer)
    return seconds - sum(copying) / (1 + STEPS)


def communication_seconds(collectives: list[Callable[[], dist.Work]]) -> float:
    """Of the collectives of a step, without computation."""
    dist.barrier()
    start = time.perf_counter()
    for work in [call() for call in collectives]:
        work.wait()
    return time.perf_counter() - start


def plain_steps(config: Config, batches: list[list[Batch]], dtype: torch.dtype) -> np.ndarray:
    """Loss and gradient norms of steps on the clips of all processes, in plain PyTorch: forward and
    backward in `dtype`, master weights and EMA in fp32."""
    model, schedules = build_model(config), make_schedules(config)
    teacher, optim = model.make_target_encoder(), config.optim
    runs, averaged = (deepcopy(network).to(dtype) for network in (model, teacher))
    decays = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    adam = torch.optim.AdamW(
        [{"params": decays}, {"params": others, "weight_decay": 0.0}],
        betas=optim.betas,
        eps=optim.eps,
    )
    found = []
    for step, of_ranks in enumerate(batches):
        losses = []
        for ((video, masks),) in of_ranks:
            with torch.no_grad():
                features = encode_clips(averaged, video)
            loss = feature_loss(runs(video, masks), features, masks, optim.loss_exponent)
            loss.backward()
            for master, p in zip(model.parameters(), runs.parameters(), strict=True):
                gradient = p.grad.float() / len(of_ranks)
                master.grad = gradient if master.grad is None else master.grad + gradient
            runs.zero_grad()
            losses.append(loss.item())
        norms = [
            torch.nn.utils.clip_grad_norm_(part.parameters(), optim.clip_grad).item()
            for part in (model.encoder, model.predictor)
        ]
        found.append([float(np.mean(losses)), *norms])
        for group in adam.param_groups:
            group["lr"] = schedules.lr(step)
        adam.param_groups[0]["weight_decay"] = schedules.weight_decay(step)
        adam.step()
        adam.zero_grad()
        momentum = schedules.momentum(step)
        with torch.no_grad():
            for average, p in zip(teacher.parameters(), model.encoder.parameters(), strict=True):
                average.lerp_(p, 1 - momentum)
            runs.load_state_dict(model.state_dict())
            averaged.load_state_dict(teacher.state_dict())
    return np.array(found)


def compare(config: Config, trainers: list[Trainer], rank: int) -> tuple[float, float]:
    """Train both in turn, and plain loops in fp32 and in the precision of the config.

    Returns:
        The largest relative difference of losses and gradient norms from the plain loop in fp32,
        and how large it may be: in bf16 twice that of the plain loop in bf16.

    Raises:
        RuntimeError: the trainers don't end with the same bits.
    """
    torch.manual_seed(0)  # every process makes the clips of all
    ranks = [list(islice(micro_batches(config, r, WORLD), STEPS)) for r in range(WORLD)]
    steps = [list(step) for step in zip(*ranks, strict=True)]
    plain, limit = plain_steps(config, steps, torch.float32), LIMIT
    if config.precision_on("cpu") == "bf16":
        rounded = plain_steps(config, steps, torch.bfloat16)
        limit = 2 * float(np.abs(rounded / plain - 1).max())
    found = []
    for trainer in trainers:
        found = []
        for batch in ranks[rank]:
            result = trainer.step(batch)
            norms = [norm.item() for norm in result.grad_norms.values()]
            found.append([result.global_loss().item(), *norms])
        settle(trainer)
    one, other = (
        [*(m for s in t.shards for m in s.masters), *t.teacher.network().parameters()]
        for t in trainers
    )
    if not all(torch.equal(a, b) for a, b in zip(one, other, strict=True)):
        raise RuntimeError("found other weights with overlap than without, expected the same bits")
    return float(np.abs(np.array(found) / plain - 1).max()), limit


def main() -> None:
    """Answer tasks until the standard input ends."""
    prepare_cpu(1)
    rank, _ = init_process_group()
    config = load_config(sys.argv[1], json.loads(sys.argv[2]))
    overlapped, apart = (build_trainer(config, WORLD) for _ in range(2))
    one_after_another(apart)
    difference, limit = compare(config, [overlapped, apart], rank)
    batch = next(micro_batches(config, 0, WORLD))  # for both: they take equally long
    with recorded() as collectives:
        overlapped.step(batch)
        settle(overlapped)
    student = overlapped.model
    answer: object = {
        "difference": difference,
        "limit": limit,
        "parameters": sum(p.numel() for p in student.parameters()),
        "encoder_parameters": sum(p.numel() for p in student.encoder.parameters()),
        "calls": len(collectives),
    }
    tasks = {
        "overlapped": partial(seconds_per_step, overlapped, batch),
        "apart": partial(seconds_per_step, apart, batch),
        "computation": partial(compute_seconds, overlapped, batch),
        "communication": partial(communication_seconds, collectives),
    }
    while True:
        print("ANSWER" + json.dumps(answer), flush=True)
        task = sys.stdin.readline().strip()
        if not task:
            break
        answer = tasks[task]()
    end_process_group()
    os._exit(0)


if __name__ == "__main__":
    main()
