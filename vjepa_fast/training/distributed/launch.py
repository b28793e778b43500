"""Joining the process group that a launcher made, or a group of one where there is none.

Launchers say who a process is in environment variables. Half of them, or those of a launcher whose
ways we don't know, are an error: a process that takes itself for the only one would train on its
own, and write over what its siblings write.
"""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator

from vjepa_fast.errors import UserError
from vjepa_fast.training.distributed.peer_watch import gone_message

_NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_HOW = "start with deepspeed, torchrun or srun, or unset it to train in this process alone"
_TIMEOUT = timedelta(minutes=10)  # for a host that vanishes without closing its connections
# What gloo, NCCL and the store say when a peer has died.
_GONE = re.compile(
    r"connection (was )?(closed|reset|refused)|broken pipe|timed out|socket closed|remote process",
    re.IGNORECASE,
)


def init_process_group() -> tuple[int, int]:
    """Join the launcher's process group, or make a group of one where there is no launcher.

    Returns:
        rank, world size.

    Raises:
        UserError: an environment that is incomplete, contradicts itself or is unknown to us; a
            rank 0 that can't be reached.
    """
    os.environ.update(place_of_process(os.environ, torch.cuda.device_count()))
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # On CPU DeepSpeed would compile a C++ extension here, a minute's work, again whenever another
    # ninja is on the path. Only its inference collectives use it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if os.environ["WORLD_SIZE"] == "1" and not torch.distributed.is_initialized():
        # Nobody to meet: no port is needed, which another process might take first.
        torch.distributed.init_process_group(
            get_accelerator().communication_backend_name(),
            store=torch.distributed.HashStore(),
            rank=0,
            world_size=1,
            timeout=_TIMEOUT,
        )
    try:
        deepspeed.init_distributed(auto_mpi_discovery=False, timeout=_TIMEOUT)
    except torch.distributed.DistError as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"MASTER_ADDR: found {os.environ['MASTER_ADDR']}, port {os.environ['MASTER_PORT']}, "
            f"where the processes can't meet ({reason}), expected rank 0's host and a free port on "
            "it; check that all processes were started and that the port is free and open"
        ) from None
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def place_of_process(env: Mapping[str, str], devices: int) -> dict[str, str]:
    """RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT as the environment has them.

    Args:
        env: what the launcher left.
        devices: GPUs that this process sees; 0 for a CPU run.

    Raises:
        UserError: an environment that is incomplete, contradicts itself or is unknown to us.
    """
    if "RANK" in env or "WORLD_SIZE" in env or "TORCHELASTIC_RUN_ID" in env:
        place = {name: env[name] for name in _NAMES if name in env}
    elif "SLURM_STEP_NUM_TASKS" in env:  # srun, and nothing but srun, sets it
        place = _place_by_slurm(env)
    else:
        _refuse_other_launchers(env)
        place = _alone()
    _check(place, devices)
    return place


def free_port() -> int:
    """A port of this host that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _alone() -> dict[str, str]:
    alone = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_PORT": free_port()}
    return {name: str(value) for name, value in alone.items()} | {"MASTER_ADDR": "127.0.0.1"}


def _place_by_slurm(env: Mapping[str, str]) -> dict[str, str]:
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST", "")
    job = int(env.get("SLURM_JOB_ID", "0")) + int(env.get("SLURM_STEP_ID", "0"))
    mapped = {
        "RANK": env.get("SLURM_PROCID"),
        "LOCAL_RANK": env.get("SLURM_LOCALID"),
        "WORLD_SIZE": env["SLURM_STEP_NUM_TASKS"],
        "MASTER_ADDR": env.get("MASTER_ADDR") or first_host(nodes),
        # the same on every host, another for every job
        "MASTER_PORT": env.get("MASTER_PORT") or str(20000 + job % 10000),
    }
    return {name: value for name, value in mapped.items() if value}


def first_host(nodes: str) -> str:
    """The first host of a SLURM node list: "a[03-05,9],b7" gives "a03"."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes).group()
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first)


def _refuse_other_launchers(env: Mapping[str, str]) -> None:
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"):
        if int(env.get(name) or 1) > 1:
            raise UserError(
                f"{name}: found {env[name]} without RANK and WORLD_SIZE, expected a launcher that "
                f"sets those; {_HOW}"
            )
    tasks = env.get("SLURM_NTASKS", "1")
    if tasks != "1":
        raise UserError(
            f"SLURM_NTASKS: found {tasks} in a process that srun did not start, expected one "
            "process for each task; put srun before the command (configs/slurm.sbatch)"
        )
    if "LOCAL_RANK" in env:
        raise UserError(
            f"LOCAL_RANK: found {env['LOCAL_RANK']} without RANK and WORLD_SIZE, expected all of "
            f"{', '.join(_NAMES)}; {_HOW}"
        )


def _check(place: Mapping[str, str], devices: int) -> None:
    missing = [name for name in _NAMES if not place.get(name)]
    if missing:
        given = ", ".join(sorted(place)) or "a launcher's mark"
        raise UserError(
            f"{missing[0]}: found nothing beside {given}, expected all of {', '.join(_NAMES)}; "
            "start with deepspeed, torchrun or srun, or set the missing ones too"
        )
    numbers = {}
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT"):
        if not place[name].isdecimal():
            raise UserError(f"{name}: found {place[name]}, expected a whole number; {_HOW}")
        numbers[name] = int(place[name])
    rank, local, world = (numbers[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    if rank >= world:
        raise UserError(f"RANK: found {rank}, expected less than WORLD_SIZE, {world}; {_HOW}")
    if devices and local >= devices:
        raise UserError(
            f"LOCAL_RANK: found {local}, expected less than the {devices} GPUs that this process "
            "sees; start at most one process for each GPU of a host"
        )


def first_words(error: RuntimeError) -> str:
    """What a collective says, less its source file and the advice that gloo adds."""
    line = str(error).partition("\n")[0].partition(". This is ")[0]
    return re.sub(r"^\[\S+:\d+\] ", "", line)


@contextmanager
def peers_are_there() -> Iterator[None]:
    """Turn what a collective says when another process has died into a sentence.

    Raises:
        UserError: another process is gone.
    """
    try:
        yield
    except RuntimeError as error:
        reason = first_words(error)
        world = torch.distributed.get_world_size()
        if world == 1 or not _GONE.search(reason):
            raise
        raise UserError(gone_message(torch.distributed.get_rank(), world, reason)) from None
