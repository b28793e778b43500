"""Joins the process group of a launcher (deepspeed, torchrun, srun), or makes a group of one."""

from __future__ import annotations

import logging
import os

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator

from vjepa_fast.training.distributed.host_group import TIMEOUT
from vjepa_fast.training.distributed.launcher import cannot_meet, launch_environment


def init_process_group() -> tuple[int, int]:
    """Join the launcher's process group, or make a group of one where there is no launcher.

    Returns:
        rank, world size.

    Raises:
        UserError: the environment is incomplete, inconsistent or of an unsupported launcher; rank 0
            cannot be reached.
    """
    os.environ.update(launch_environment(os.environ, torch.cuda.device_count()))
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # On a CPU DeepSpeed would compile a C++ extension here, for a minute, again whenever another
    # ninja is on the path. Only its inference collectives use it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if os.environ["WORLD_SIZE"] == "1" and not torch.distributed.is_initialized():
        # A store without a port, since another process might take the port first.
        torch.distributed.init_process_group(
            get_accelerator().communication_backend_name(),
            store=torch.distributed.HashStore(),
            rank=0,
            world_size=1,
            timeout=TIMEOUT,
        )
    try:
        deepspeed.init_distributed(auto_mpi_discovery=False, timeout=TIMEOUT)
    except torch.distributed.DistError as error:
        raise cannot_meet(os.environ, error) from None
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def end_process_group() -> None:
    """Wait for all ranks and leave the process group, at the end of a program. Collective.

    A process that exits while gloo's threads still send (the target encoder's last all-gather) may
    abort or hang. Destroying the group waits for them.
    """
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
