"""Joining the process group that a launcher made, or a group of one."""

from __future__ import annotations

import logging
import os
import socket

import deepspeed
import torch


def init_process_group() -> tuple[int, int]:
    """Join the launcher's process group, or make a group of one where there is no launcher.

    Returns:
        rank, world size.
    """
    if "RANK" not in os.environ and "WORLD_SIZE" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        alone = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in alone.items()})
        os.environ["MASTER_ADDR"] = "127.0.0.1"
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # On CPU DeepSpeed would compile a C++ extension here, a minute's work, again whenever another
    # ninja is on the path. Only its inference collectives use it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(auto_mpi_discovery=False)
    return torch.distributed.get_rank(), torch.distributed.get_world_size()
