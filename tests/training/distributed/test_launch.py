"""A process's rank from its launcher's environment; no process trains alone by mistake."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from datetime import timedelta

import pytest
import torch.distributed as dist

from tests.helpers.paths import REPOSITORY
from vjepa_fast.errors import UserError
from vjepa_fast.training.distributed.host_group import HostGroup
from vjepa_fast.training.distributed.join import join_processes
from vjepa_fast.training.distributed.launcher import first_host, launch_environment
from vjepa_fast.training.distributed.peer_watch import PeerWatch, collective_reason

TORCHRUN = {
    "RANK": "3",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "4",
    "MASTER_ADDR": "head",
    "MASTER_PORT": "29500",
}
SRUN = {
    "SLURM_JOB_ID": "123456",
    "SLURM_STEP_ID": "0",
    "SLURM_NTASKS": "16",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_NODELIST": "gpu[007-008]",
}


def test_without_a_launcher() -> None:
    found = launch_environment({}, devices=0)
    assert int(found.pop("MASTER_PORT")) > 1023
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    assert found == alone
    batch_job_of_one_task = {"SLURM_JOB_ID": "5", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}
    assert launch_environment(batch_job_of_one_task, devices=1)["WORLD_SIZE"] == "1"


def test_launchers() -> None:
    assert launch_environment(TORCHRUN, devices=2) == TORCHRUN
    assert launch_environment(TORCHRUN | {"SLURM_NTASKS": "2"}, devices=2) == TORCHRUN
    found = launch_environment(SRUN, devices=8)
    assert found == {
        "RANK": "9",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "16",
        "MASTER_ADDR": "gpu007",
        "MASTER_PORT": "23456",
    }
    given = launch_environment(SRUN | {"MASTER_ADDR": "a", "MASTER_PORT": "1"}, devices=8)
    assert (given["MASTER_ADDR"], given["MASTER_PORT"]) == ("a", "1")
    other_step = launch_environment(SRUN | {"SLURM_STEP_ID": "1"}, devices=8)
    assert other_step["MASTER_PORT"] != found["MASTER_PORT"]


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("a1", "a1"),
        ("a1,b2", "a1"),
        ("a[03-05,9],b7", "a03"),
        ("a[7,9]", "a7"),
        ("rack[2-3]n[10-12]-ib,x", "rack2n10-ib"),
    ],
)
def test_the_first_host_of_a_node_list(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        (
            "[/w/gloo/tcp/pair.cc:537] Read error [10.77.0.2]:56449: Connection reset by peer. "
            "This is typically caused by a remote worker hanging. Check the logs!",
            "Read error [10.77.0.2]:56449: Connection reset by peer",
        ),
        ("NCCL error: remote process exited\nLast error: x", "NCCL error: remote process exited"),
    ],
)
def test_the_reason_of_a_failed_collective(said: str, kept: str) -> None:
    assert collective_reason(RuntimeError(said)) == kept


def without(*names: str) -> dict[str, str]:
    return {name: value for name, value in TORCHRUN.items() if name not in names}


@pytest.mark.parametrize(
    ("env", "devices", "sentence"),
    [
        ({"RANK": "0"}, 0, "LOCAL_RANK: found nothing beside RANK, expected all of RANK,"),
        (without("WORLD_SIZE"), 0, "WORLD_SIZE: found nothing beside LOCAL_RANK, MASTER_ADDR,"),
        (without("MASTER_ADDR"), 0, "MASTER_ADDR: found nothing"),
        (without("LOCAL_RANK"), 0, "LOCAL_RANK: found nothing"),
        ({"LOCAL_RANK": "1"}, 0, "LOCAL_RANK: found 1 without RANK and WORLD_SIZE"),
        (TORCHRUN | {"RANK": "4"}, 0, "RANK: found 4, expected less than WORLD_SIZE, 4"),
        (TORCHRUN | {"RANK": "one"}, 0, "RANK: found one, expected a whole number"),
        (TORCHRUN, 1, "LOCAL_RANK: found 1, expected less than the 1 GPUs"),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, 0, "SLURM_NTASKS: found 8 in a process that"),
        (SRUN | {"SLURM_JOB_NODELIST": ""}, 0, "MASTER_ADDR: found nothing"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, 0, "OMPI_COMM_WORLD_SIZE: found 4 without RANK"),
        ({"PMI_SIZE": "2"}, 0, "PMI_SIZE: found 2 without RANK"),
        ({"TORCHELASTIC_RUN_ID": "x"}, 0, "RANK: found nothing"),
    ],
)
def test_a_wrong_environment_is_a_sentence(
    env: dict[str, str], devices: int, sentence: str
) -> None:
    with pytest.raises(UserError) as caught:
        launch_environment(env, devices)
    message = str(caught.value)
    assert message.startswith(sentence)
    assert ", expected " in message and "; " in message


def test_one_process_needs_no_port() -> None:
    """Another process might take a free port before this one does."""
    code = (
        "from vjepa_fast.training.distributed.launch import init_process_group; "
        "print(init_process_group())"
    )
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
        env = os.environ | alone | {"MASTER_PORT": str(taken.getsockname()[1])}
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, cwd=REPOSITORY, capture_output=True, text=True
        )
    assert done.returncode == 0, done.stderr
    assert "(0, 1)" in done.stdout


def test_what_a_run_of_several_processes_waits_and_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU the group of the hosts waits as long as the group that was joined."""
    made: list[dict] = []
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "get_backend", lambda: "cpu:gloo,cuda:nccl")
    monkeypatch.setattr(dist, "new_group", lambda **options: made.append(options))
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    groups = HostGroup(), join_processes()
    assert [options["timeout"] for options in made] == [timedelta(minutes=10), timedelta(days=1)]
    closed = RuntimeError("[../gloo.cc:1] Connection closed by peer [1]:2")
    for watch, then in (
        (PeerWatch(groups[0]), "resume from the newest checkpoint"),
        (PeerWatch(groups[1], "go on where it was stopped"), "go on where it was stopped"),
    ):
        with pytest.raises(UserError, match=f"then run the same command to {then}$"):
            watch._raise_if_gone(closed)
