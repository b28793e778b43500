"""A process's position among those of a launcher (deepspeed, torchrun, srun).

A launcher describes it in environment variables. A partial set of them, or the variables of an
unsupported launcher, is rejected: each process would otherwise train alone and overwrite the files
of the others.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping

from vjepa_fast.errors import UserError

_NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_HOW = "start with deepspeed, torchrun or srun, or unset it to run in this process alone"


def launch_environment(env: Mapping[str, str], devices: int) -> dict[str, str]:
    """Read RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT from the environment.

    Args:
        env: the environment variables.
        devices: number of GPUs that this process sees; 0 for a CPU run.

    Raises:
        UserError: the environment is incomplete, inconsistent or of an unsupported launcher.
    """
    if "RANK" in env or "WORLD_SIZE" in env or "TORCHELASTIC_RUN_ID" in env:
        found = {name: env[name] for name in _NAMES if name in env}
    elif "SLURM_STEP_NUM_TASKS" in env:  # set by srun only
        found = _from_slurm(env)
    else:
        _reject_other_launchers(env)
        found = _alone()
    _check(found, devices)
    return found


def cannot_meet(env: Mapping[str, str], error: Exception) -> UserError:
    """The error of a process that does not reach the others; `error` is torch's."""
    reason = str(error).partition("\n")[0]
    return UserError(
        f"MASTER_ADDR: found {env['MASTER_ADDR']}, port {env['MASTER_PORT']}, where the processes "
        f"cannot meet ({reason}), expected rank 0's host and a free port on it; check that all "
        "processes were started and that the port is free and open"
    )


def free_port() -> int:
    """A TCP port of this host that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _alone() -> dict[str, str]:
    alone = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_PORT": free_port()}
    return {name: str(value) for name, value in alone.items()} | {"MASTER_ADDR": "127.0.0.1"}


def _from_slurm(env: Mapping[str, str]) -> dict[str, str]:
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST", "")
    job = int(env.get("SLURM_JOB_ID", "0")) + int(env.get("SLURM_STEP_ID", "0"))
    mapped = {
        "RANK": env.get("SLURM_PROCID"),
        "LOCAL_RANK": env.get("SLURM_LOCALID"),
        "WORLD_SIZE": env["SLURM_STEP_NUM_TASKS"],
        "MASTER_ADDR": env.get("MASTER_ADDR") or first_host(nodes),
        # the same on every host, different for every job
        "MASTER_PORT": env.get("MASTER_PORT") or str(20000 + job % 10000),
    }
    return {name: value for name, value in mapped.items() if value}


def first_host(nodes: str) -> str:
    """The first host of a SLURM node list: "a[03-05,9],b7" gives "a03"."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes).group()
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first)


def _reject_other_launchers(env: Mapping[str, str]) -> None:
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


def _check(found: Mapping[str, str], devices: int) -> None:
    missing = [name for name in _NAMES if not found.get(name)]
    if missing:
        given = ", ".join(sorted(found)) or "TORCHELASTIC_RUN_ID"
        raise UserError(
            f"{missing[0]}: found nothing beside {given}, expected all of {', '.join(_NAMES)}; "
            "start with deepspeed, torchrun or srun, or set the missing ones too"
        )
    numbers = {}
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT"):
        if not found[name].isdecimal():
            raise UserError(f"{name}: found {found[name]}, expected a whole number; {_HOW}")
        numbers[name] = int(found[name])
    rank, local, world = (numbers[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    if rank >= world:
        raise UserError(f"RANK: found {rank}, expected less than WORLD_SIZE, {world}; {_HOW}")
    if devices and local >= devices:
        raise UserError(
            f"LOCAL_RANK: found {local}, expected less than the {devices} GPUs that this process "
            "sees; start at most one process for each GPU of a host"
        )
