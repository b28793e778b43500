"""Joins the processes of a launcher without DeepSpeed, for programs that only evaluate."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as dist

from vjepa_fast.training.distributed.host_group import HostGroup
from vjepa_fast.training.distributed.launcher import cannot_meet, launch_environment

_TIMEOUT = timedelta(days=1)  # one process may compute features for hours while others wait


def join_processes() -> HostGroup:
    """Join the launcher's process group, or make a group of one where there is no launcher.

    A process group that is there already is used as it is. On a GPU, the process uses the one of
    its LOCAL_RANK.

    Raises:
        UserError: the environment is incomplete, inconsistent or of an unsupported launcher; rank 0
            cannot be reached.
    """
    devices = torch.cuda.device_count()
    if not dist.is_initialized():
        env = launch_environment(os.environ, devices)
        alone = env["WORLD_SIZE"] == "1"
        if not alone:
            os.environ.update(env)
        if devices:
            torch.cuda.set_device(int(env["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl" if devices else "gloo"
        # A store without a port for one process, since another one might take the port first.
        of_one = {"store": dist.HashStore(), "rank": 0, "world_size": 1}
        try:
            dist.init_process_group(backend, timeout=_TIMEOUT, **(of_one if alone else {}))
        except dist.DistError as error:
            raise cannot_meet(env, error) from None
    return HostGroup(_TIMEOUT)


def leave_processes(group: HostGroup) -> None:
    """Wait for all processes at the end of a program of several, and leave their group. Collective.

    A process that exits while others still send may abort them.
    """
    if group.world > 1:
        group.barrier()
        dist.destroy_process_group()
