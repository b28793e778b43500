"""Checks the model of bench/scaling.py against 1, 2 and 4 gloo processes on this machine.

Each process has one thread. The parts of a step are measured in as many processes that train at the
same time, each alone on its part of the batch. The link is measured by all-gathers between the
processes that train together. So the check covers the rest of the model: bytes sent, and calls.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # bench/, as for its commands

import argparse
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from common import write_json
from scale.model import Bytes, Links, Parts, step_on
from vjepa_fast.commands.terminal import text_table
from vjepa_fast.config import Config, load_config
from vjepa_fast.config.masks import sample_masks
from vjepa_fast.errors import UserError
from vjepa_fast.models.sequences import PackedMasks
from vjepa_fast.training.batches import make_sampler, packed, split_batch
from vjepa_fast.training.build import build_trainer
from vjepa_fast.training.distributed.cpu import prepare_cpu
from vjepa_fast.training.distributed.launch import end_process_group, init_process_group
from vjepa_fast.training.distributed.launcher import free_port
from vjepa_fast.training.monitoring.environment import processor
from vjepa_fast.training.trainer import Trainer

PROCESSES = (1, 2, 4)
STAGES = (0, 1, 2, 3)
STEPS = 12
SENT = (1 << 16, 1 << 23)  # bytes of the two all-gathers that separate latency from bandwidth


def micro_batches(
    config: Config, rank: int, world: int
) -> Iterator[list[tuple[Tensor, PackedMasks]]]:
    """A rank's micro-batches of each step, on random video; the first two steps are a warm-up."""
    clips, count = split_batch(config, world)
    sampler, data = make_sampler(config), config.data
    shape = (clips, data.num_frames, data.crop_size, data.crop_size, 3)
    video = torch.randint(0, 256, shape).to(torch.uint8)
    for step in range(STEPS + 2):
        first = step * config.optim.global_batch
        starts = (first + (i * world + rank) * clips for i in range(count))
        masks = [sample_masks(sampler, step, list(range(start, start + clips))) for start in starts]
        token = config.mask_token(data.num_frames)
        yield [(video, packed(m, torch.device("cpu"), token)) for m in masks]


def link() -> tuple[float, float]:
    """Bytes/s, and seconds per message, of an all-gather between these processes."""
    world = dist.get_world_size()
    if world == 1:
        return float("inf"), 0.0

    def gather(size: int) -> float:
        own = torch.zeros(size // world // 4)
        whole = torch.zeros(own.numel() * world)
        return time_together(partial(dist.all_gather_into_tensor, whole, own), 25)

    small, large = (gather(size) for size in SENT)
    others = (world - 1) / world
    rate = others * (SENT[1] - SENT[0]) / max(large - small, 1e-9)
    return rate, max(0.0, small - others * SENT[0] / rate) / (world - 1)


def time_together(call: Callable[[], object], repeats: int) -> float:
    """Median seconds of a call that all processes start at the same time."""
    seconds = []
    for _ in range(repeats):
        dist.barrier()
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def train_together(path: Path) -> dict:
    """Median time of a step that follows another, at each stage, of processes that divide the
    config's global batch; their link."""
    rank, world = init_process_group()
    configs = {stage: load_config(path, [f"zero.stage={stage}"]) for stage in STAGES}
    trainers: dict[int, Trainer] = {s: build_trainer(c, world) for s, c in configs.items()}
    seconds: dict[int, list[float]] = {stage: [] for stage in STAGES}
    for batches in micro_batches(configs[0], rank, world):
        for stage, trainer in trainers.items():
            dist.barrier()  # gloo's waits for all collectives, which the next step is to hide
            trainer.step(batches)
            start = time.perf_counter()
            trainer.step(batches)
            seconds[stage].append(time.perf_counter() - start)
    rate, latency = link()
    model, teacher = trainers[0].model, trainers[0].teacher.network()
    return {
        "ms": {stage: 1e3 * float(np.median(times[2:])) for stage, times in seconds.items()},
        "rate": rate,
        "latency": latency,
        "bytes": 4 * sum(p.numel() for p in model.parameters()),
        "teacher_bytes": 4 * sum(p.numel() for p in teacher.parameters()),
        "buckets": sum(len(s.buckets) for s in trainers[1].shards),
        "teacher_buckets": sum(len(s.buckets) for s in trainers[1].teacher.shards),
    }


def train_apart(path: Path, processes: int) -> dict:
    """Median time of each part of a step of this process alone, on the micro-batch that it would
    have as one of `processes`. The others do the same at the same time."""
    init_process_group()
    clips, _ = split_batch(load_config(path), processes)
    keys = ("optim.global_batch", "optim.micro_batch", "masks.truncate_group")
    config = load_config(path, [f"{key}={clips}" for key in keys])
    trainer, parts = build_trainer(config, 1), []
    for batches in micro_batches(config, 0, 1):
        trainer.step(batches)
        parts.append(trainer.timer.take())
    medians = {part: float(np.median([p[part] for p in parts[2:]])) for part in parts[0]}
    return {"clips": clips, "parts_ms": medians}


def measure(path: Path, processes: int, apart: bool) -> dict:
    """Start the processes and return the first one's result. Raises UserError if one fails."""
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "OMP_NUM_THREADS": 1}
    with TemporaryDirectory(prefix="vjepa_fast_scaling_") as folder:
        running = []
        for rank in range(processes):
            ids = {"WORLD_SIZE": processes, "RANK": rank, "LOCAL_RANK": rank}
            own = {"OMP_NUM_THREADS": 1} if apart else common | ids
            env = os.environ | {name: str(value) for name, value in own.items()}
            output = str(Path(folder) / f"{rank}.json")
            command = [sys.executable, __file__, str(path), output]
            command += ["--apart", str(processes)] if apart else []
            log = open(Path(folder) / f"{rank}.log", "w+")  # noqa: SIM115 closed below
            running.append((subprocess.Popen(command, env=env, stdout=log, stderr=log), log))
        failed = []
        for process, log in running:
            if process.wait():
                log.seek(0)
                failed.append(log.read()[-300:].strip())
            log.close()
        if failed:
            raise UserError(
                f"{processes} processes: found that {len(failed)} failed ({failed[0]}), expected "
                "them to train together over gloo; check the memory that this machine has free"
            )
        return json.loads((Path(folder) / "0.json").read_text(encoding="utf-8"))


def check(path: Path, output: Path | None) -> int:
    """Print predicted and measured step times, and the largest factor between them."""
    cores, path = len(os.sched_getaffinity(0)), path.resolve()
    optim, found = load_config(path).optim, {}
    rows, worst = [("processes", "stage", "predicted", "measured", "ratio")], 1.0
    for processes in PROCESSES:
        here = found[processes] = measure(path, processes, True) | measure(path, processes, False)
        seconds = {part: ms / 1e3 for part, ms in here["parts_ms"].items() if part != "data"}
        links = Links(processes, here["rate"], here["rate"], here["latency"])
        sent = ("bytes", "bytes", "teacher_bytes", "buckets", "teacher_buckets")
        sizes = Bytes(*(here[key] for key in sent))
        parts = Parts(clips=here["clips"], **seconds)
        for stage in STAGES:
            step = step_on(
                processes, stage, parts, sizes, links, optim.global_batch, optim.micro_batch
            )
            predicted, measured = 1e3 * step.exposed, here["ms"][str(stage)]
            ratio = predicted / measured
            worst = max(worst, ratio, 1 / ratio)
            cells = f"{predicted:.1f} ms", f"{measured:.1f} ms", f"{ratio:.2f}"
            rows.append((str(processes), str(stage), *cells))
    print(f"{path.name}, {processor()}, {cores} cores, one thread a process\n{text_table(rows)}")
    print(f"predicted and measured differ by a factor of at most {worst:.2f}")
    if output:
        write_json(output, {"cores": cores, "cpu": processor(), "found": found})
    return 0


def main() -> None:
    """One of the processes: measure, write the result."""
    parser = argparse.ArgumentParser(description="A process of bench/scaling.py --check.")
    parser.add_argument("config", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--apart", type=int, metavar="N", help="train alone, as one of N processes")
    options = parser.parse_args()
    prepare_cpu(1)  # one thread, as the environment says
    if options.apart:
        result = train_apart(options.config, options.apart)
    else:
        result = train_together(options.config)
    options.output.write_text(json.dumps(result), encoding="utf-8")
    end_process_group()


if __name__ == "__main__":
    main()
