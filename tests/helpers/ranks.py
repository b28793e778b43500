"""Runs a Python program as all ranks of one process group."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from tests.helpers.paths import REPOSITORY
from vjepa_fast.training.distributed.launcher import free_port


def run_ranks(program: list[str], world: int, seconds: float) -> list:
    """What each rank printed after "FOUND", parsed as JSON, by rank.

    Args:
        program: arguments of the Python interpreter.
        world: number of ranks.
        seconds: after which a rank has failed. Ranks that are left are killed, since one that hangs
            would slow all later tests.
    """
    unused_port = str(free_port())
    env = os.environ | {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1"}
    env |= {"MASTER_PORT": unused_port, "OMP_NUM_THREADS": "1"}
    env |= {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path])}
    ranks = [
        subprocess.Popen(
            [sys.executable, *program],
            env=env | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        # All at once: a rank whose pipe is full waits for its reader, and the others for that rank.
        with ThreadPoolExecutor(world) as pool:
            outputs = pool.map(lambda process: process.communicate(timeout=seconds)[0], ranks)
            printed = list(outputs)
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [0] * world
    return [json.loads(text.rpartition("FOUND")[2].splitlines()[0]) for text in printed]
