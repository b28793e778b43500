"""The model of bench/scaling.py against 1, 2 and 4 gloo processes on this machine.

Each process has one thread. How much slower it computes beside the others is what a matrix product
takes in all of them at once, against one alone; the link is what an all-gather between the same
processes takes. Both are measured beside the steps. What the model leaves out shows: the calls.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.distributed as dist
from scaling_model import Bytes, Links, Parts, step_on

from vjepa_fast.config import load_config
from vjepa_fast.errors import UserError
from vjepa_fast.info import table
from vjepa_fast.training.batches import make_sampler, packed
from vjepa_fast.training.build import build_trainer
from vjepa_fast.training.launch import free_port, init_process_group
from vjepa_fast.training.trainer import Trainer

PROCESSES = (1, 2, 4)
STAGES = (0, 1, 2, 3)
STEPS = 12
SENT = (1 << 16, 1 << 23)  # bytes of the all-gathers that tell latency and rate apart
_HERE = Path(__file__).resolve().parent


def together(call: Callable[[], object], repeats: int) -> float:
    """Median seconds of a call that all processes start at once."""
    laps = []
    for _ in range(repeats):
        dist.barrier()
        start = time.perf_counter()
        call()
        laps.append(time.perf_counter() - start)
    return float(np.median(laps))


def link() -> tuple[float, float]:
    """Bytes a second and seconds a message of an all-gather between these processes."""
    world = dist.get_world_size()
    if world == 1:
        return float("inf"), 0.0
    times = []
    for size in SENT:
        own = torch.zeros(size // world // 4)
        whole = torch.zeros(own.numel() * world)
        times.append(together(partial(dist.all_gather_into_tensor, whole, own), 9))
    share = (world - 1) / world
    rate = share * (SENT[1] - SENT[0]) / max(times[1] - times[0], 1e-9)
    return rate, max(0.0, times[0] - share * SENT[0] / rate) / (world - 1)


def product() -> float:
    """Seconds of a matrix product in all processes at once, median."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    return together(partial(torch.mm, a, b), 15)


def worker(path: Path, output: Path) -> None:
    """One of the processes: seconds of a step at each stage, and the link; rank 0 writes."""
    torch.set_num_threads(1)
    rank, world = init_process_group()
    base = load_config(path)
    config = {s: load_config(path, [f"zero.stage={s}"]) for s in STAGES}
    trainers: dict[int, Trainer] = {s: build_trainer(config[s], world) for s in STAGES}
    sampler, clips = make_sampler(base), trainers[0].micro_batch
    size = base.data.crop_size
    video = torch.randint(0, 256, (clips, base.data.num_frames, size, size, 3)).to(torch.uint8)
    seconds: dict[int, list[float]] = {stage: [] for stage in STAGES}
    for step in range(STEPS + 2):
        first = step * clips * world + rank * clips
        masks = sampler.sample(step, range(first, first + clips))
        batch = [(video, packed(masks, torch.device("cpu")))]
        for stage, trainer in trainers.items():
            if step == 2:
                trainer.laps.take()
            dist.barrier()
            start = time.perf_counter()
            trainer.step(batch * trainer.accumulation)
            dist.barrier()
            if step >= 2:
                seconds[stage].append(time.perf_counter() - start)
    rate, latency = link()
    seconds_of_product = product()
    if rank == 0:
        found = {
            "clips": clips * trainers[0].accumulation,
            "ms": {stage: 1e3 * float(np.median(times)) for stage, times in seconds.items()},
            "parts_ms": trainers[0].laps.take(),
            "rate": rate,
            "latency": latency,
            "product": seconds_of_product,
            "bytes": 4 * sum(p.numel() for p in trainers[0].model.parameters()),
            "teacher_bytes": 4 * sum(p.numel() for p in trainers[0].teacher.encoder.parameters()),
        }
        output.write_text(json.dumps(found), encoding="utf-8")
    dist.barrier()


def measure(path: Path, processes: int) -> dict:
    """Start the processes and wait for what they find. Raises UserError where one fails."""
    common = {"WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    common["OMP_NUM_THREADS"] = 1
    with TemporaryDirectory(prefix="vjepa_fast_scaling_") as folder:
        output = Path(folder) / "found.json"
        command = [sys.executable, str(_HERE / "scaling_check.py"), str(path), str(output)]
        running = []
        for rank in range(processes):
            own = common | {"RANK": rank, "LOCAL_RANK": rank}
            env = os.environ | {name: str(value) for name, value in own.items()}
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
                "them to train together over gloo; see that this machine has room for them"
            )
        return json.loads(output.read_text(encoding="utf-8"))


def check(path: Path, output: Path | None) -> int:
    """Print predicted and measured steps, and how far apart they are."""
    cores = len(os.sched_getaffinity(0))
    found = {processes: measure(path.resolve(), processes) for processes in PROCESSES}
    one, optim = found[1], load_config(path).optim
    parts = {name: ms / 1e3 for name, ms in one["parts_ms"].items() if name != "data"}
    rows, worst = [("processes", "stage", "predicted", "measured", "ratio")], 1.0
    for processes, here in found.items():
        links = Links(processes, here["rate"], here["rate"], here["latency"])
        sizes = Bytes(here["bytes"], here["bytes"], here["teacher_bytes"])
        for stage in STAGES:
            step = step_on(
                processes,
                stage,
                Parts(clips=one["clips"], **parts),
                sizes,
                links,
                optim.global_batch,
                optim.micro_batch,
                slowdown=max(1.0, here["product"] / one["product"]),
            )
            predicted, measured = 1e3 * step.exposed, here["ms"][str(stage)]
            ratio = predicted / measured
            worst = max(worst, ratio, 1 / ratio)
            cells = f"{predicted:.1f} ms", f"{measured:.1f} ms", f"{ratio:.2f}"
            rows.append((str(processes), str(stage), *cells))
    print(f"{path.name}, {cores} cores, one thread a process\n{table(rows)}")
    print(f"predicted and measured differ by a factor of {worst:.2f} at most")
    if output:
        output.write_text(json.dumps({"cores": cores, "found": found}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A process of bench/scaling.py --check.")
    parser.add_argument("config", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    worker(options.config, options.output)
