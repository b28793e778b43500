"""Runs under real launchers, and on two hosts: network namespaces with a link between them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.forked_runs import LAUNCHERS
from tests.helpers.paths import REPOSITORY
from vjepa_fast.training.checkpoint.format import Checkpoint, checkpoints

pytestmark = pytest.mark.slow

TRAIN = str(REPOSITORY / "vjepa_fast" / "train.py")
BIN = Path(sys.executable).parent
LONG = 100_000  # steps that no test waits for
HOSTS = {"vjepa_a": "10.77.0.1", "vjepa_b": "10.77.0.2"}


class Job:
    """A running command and its output."""

    def __init__(self, command: list[str], output: Path, env: dict[str, str]) -> None:
        clean = {name: value for name, value in os.environ.items() if name not in LAUNCHERS}
        clean |= {"OMP_NUM_THREADS": "1", "PATH": f"{BIN}:{clean['PATH']}"} | env
        self.output = output
        with output.open("w") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=file, env=clean)

    @property
    def text(self) -> str:
        return self.output.read_text(errors="replace")

    def until(self, what: Callable[[], object], seconds: float = 900) -> None:
        end = time.monotonic() + seconds
        while not what():
            assert self.process.poll() is None, self.text
            assert time.monotonic() < end, self.text
            time.sleep(0.05)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Job]]:
    jobs: list[Job] = []

    def make(command: list[str], **env: str) -> Job:
        jobs.append(Job(command, tmp_path / f"job{len(jobs)}.txt", env))
        return jobs[-1]

    yield make
    for job in jobs:
        job.process.kill()
        job.process.wait()


def processes(config: Path) -> list[int]:
    """Process ids that train on a config, without their launchers."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(config).encode() in words and TRAIN.encode() in words[1:3]:
            found.append(int(folder.name))
    return found


def written(config: dict, folder: Path) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    return path


def wait_until_ended(config: Path) -> None:
    end = time.monotonic() + 300
    while processes(config):
        assert time.monotonic() < end
        time.sleep(0.1)


NO_SSH = ["--no_ssh", "--node_rank", "0", "--master_addr", "127.0.0.1"]  # no sshd here
LAUNCH = {
    "deepspeed": ["deepspeed", "--num_accelerators", "2", "--master_port", "29611"],
    "hostfile": ["deepspeed", "--hostfile", "HOSTFILE", *NO_SSH, "--master_port", "29612"],
    "torchrun": ["torchrun", "--nproc-per-node", "2", "--master-port", "29613"],
}


@pytest.mark.parametrize("launcher", LAUNCH)
def test_ending_the_launcher_saves_and_the_same_command_resumes(
    small_config: Callable[..., dict], tmp_path: Path, start: Callable[..., Job], launcher: str
) -> None:
    """SIGTERM to the launcher's own process alone, as `kill` sends it."""
    hostfile = tmp_path / "hosts"
    hostfile.write_text("localhost slots=2\n")
    begin = [str(BIN / LAUNCH[launcher][0]), *LAUNCH[launcher][1:]]
    begin = [str(hostfile) if word == "HOSTFILE" else word for word in begin]
    config = written(small_config(optim={"steps": LONG}, checkpoint={"every": LONG}), tmp_path)
    command = [*begin, TRAIN, "--config", str(config)]
    for _ in range(2):
        job = start(command)
        job.until(lambda job=job: "data wait" in job.text)
        job.process.send_signal(signal.SIGTERM)
        job.process.wait(300)
        wait_until_ended(config)
        assert "run the same command to resume" in job.text, job.text
    first, second = checkpoints(tmp_path / "run")
    assert f"resumed at step {int(first.name.removeprefix('step_'))} " in job.text
    assert second > first


def test_srun(small_config: Callable[..., dict], tmp_path: Path, start: Callable[..., Job]) -> None:
    """Without SLURM: two real processes with the variables that srun would set."""
    config = written(small_config(optim={"steps": 4}), tmp_path)
    common = {"SLURM_JOB_ID": "29614", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}
    common |= {"SLURM_NTASKS": "2", "SLURM_STEP_NODELIST": "localhost"}
    command = [sys.executable, TRAIN, "--config", str(config)]
    jobs = [
        start(command, **common, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank)) for rank in (0, 1)
    ]
    for job in jobs:
        assert job.process.wait(900) == 0, job.text
    assert "world size 2" in jobs[0].text and "world size 2" not in jobs[1].text
    assert Checkpoint.find(tmp_path / "run").world_size == 2


# ------------------------------------------------------------------------------------- two hosts


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def link() -> Iterator[None]:
    """Two network namespaces, vjepa_a and vjepa_b, and a pair of virtual devices between them."""
    made = []
    try:
        for name in HOSTS:
            ip("netns", "add", name)
            made.append(name)
        a, b = HOSTS
        ip("link", "add", a, "netns", a, "type", "veth", "peer", "name", b, "netns", b)
        for name, address in HOSTS.items():
            ip("-n", name, "addr", "add", f"{address}/24", "dev", name)
            ip("-n", name, "link", "set", name, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield
    finally:
        for name in made:
            ip("netns", "del", name)


def on_two_hosts(start: Callable[..., Job], config: Path) -> list[Job]:
    jobs = []
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": HOSTS["vjepa_a"], "MASTER_PORT": "29615"}
    for rank, name in enumerate(HOSTS):
        own = {"RANK": str(rank), "LOCAL_RANK": "0", "GLOO_SOCKET_IFNAME": name}
        command = ["ip", "netns", "exec", name, sys.executable, TRAIN, "--config", str(config)]
        jobs.append(start(command, **common, **own))
    return jobs


@pytest.mark.skipif(os.getuid() != 0, reason="making network namespaces needs root")
@pytest.mark.parametrize("end", ["kill", "cut the link"])
def test_two_hosts_train_together_and_the_end_of_one_ends_the_other(
    small_config: Callable[..., dict],
    tmp_path: Path,
    start: Callable[..., Job],
    link: None,
    end: str,
) -> None:
    config = written(small_config(optim={"steps": LONG}, checkpoint={"every": 5}), tmp_path)
    jobs = on_two_hosts(start, config)
    jobs[0].until(lambda: checkpoints(tmp_path / "run"))
    if end == "kill":
        jobs[1].process.kill()
    else:
        ip("-n", "vjepa_b", "link", "set", "vjepa_b", "down")
    for job in jobs:
        assert job.process.wait(300) != 0  # a collective gives up after 600 s only
    assert "found that another process of this run is gone" in jobs[0].text
    wait_until_ended(config)

    if end != "kill":
        ip("-n", "vjepa_b", "link", "set", "vjepa_b", "up")
    saved = Checkpoint.find(tmp_path / "run").state["step"]
    jobs = on_two_hosts(start, config)
    jobs[0].until(lambda: f"resumed at step {saved} " in jobs[0].text)
    jobs[0].until(lambda: checkpoints(tmp_path / "run")[-1].name > f"step_{saved:08d}")
    jobs[1].process.send_signal(signal.SIGTERM)
    for job in jobs:
        assert job.process.wait(300) == 0, job.text
    assert "run the same command to resume" in jobs[0].text
