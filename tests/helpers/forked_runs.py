"""Runs of train.py, forked from one process that has imported everything, to import only once.

Run as a program, this file is that process; tests use `Runs`."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Run:
    """A process of a started run.

    Attributes:
        pid: process id.
        output: file with its stdout and stderr.
    """

    def __init__(self, runs: Runs, pid: int, output: Path) -> None:
        self._runs, self.pid, self.output = runs, pid, output

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Its exit status, negative where a signal ended it."""
        status = self._runs.ask({"wait": self.pid})
        self._runs.running.discard(self.pid)
        return status

    @property
    def text(self) -> str:
        return self.output.read_text(errors="replace")

    def until(self, what: Callable[[], object], seconds: float = 900) -> None:
        """Wait until a condition holds while the run continues."""
        end = time.monotonic() + seconds
        while not what():
            assert os.path.exists(f"/proc/{self.pid}/exe"), f"it ended: {self.text}"
            assert time.monotonic() < end, self.text
            time.sleep(0.005)


class Runs:
    """Starts runs; to be closed."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._number = folder, 0
        self.running: set[int] = set()
        env = {name: value for name, value in os.environ.items() if name not in LAUNCHERS}
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        )

    def ask(self, question: dict) -> int:
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the process that forks runs has died"
        return int(answer)

    def start(self, config: dict, env: dict | None = None, largest_file: int = -1) -> Run:
        """Start train.py on a config.

        Args:
            config: its JSON data.
            env: environment variables to add.
            largest_file: limit of a file's size in bytes; -1 for none.
        """
        self._number += 1
        path = self._folder / f"config{self._number}.json"
        path.write_text(json.dumps(config))
        output = path.with_suffix(".txt")
        output.touch()
        question = {"arguments": ["--config", str(path)], "env": env or {}, "output": str(output)}
        pid = self.ask(question | {"largest_file": largest_file})
        self.running.add(pid)
        return Run(self, pid, output)

    def together(
        self, config: dict | list[dict], world: int, limits: dict | None = None
    ) -> list[Run]:
        """Start train.py in several processes of one run, by plain environment variables.

        Args:
            config: its JSON data; a list has one for every process.
            world: number of processes.
            limits: `largest_file` by rank, where there is one.
        """
        configs = config if isinstance(config, list) else [config] * world
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world)}
        return [
            self.start(
                configs[rank],
                common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                (limits or {}).get(rank, -1),
            )
            for rank in range(world)
        ]

    def finish(self, config: dict, world: int = 1) -> str:
        """Run to the end; returns what rank 0 printed."""
        runs = self.together(config, world) if world > 1 else [self.start(config)]
        for run in runs:
            assert run.wait() == 0, run.text
        return runs[0].text

    def kill_all(self) -> None:
        """Kill the runs that a failed test has left."""
        for pid in list(self.running):
            os.kill(pid, signal.SIGKILL)
            Run(self, pid, self._folder).wait()

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(60)


@contextmanager
def small_file_system(folder: Path, size: int) -> Iterator[None]:
    """Mount a file system of `size` bytes at a folder. Needs root."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    subprocess.run(mount, check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def main() -> None:
    """Read requests line by line: fork a run and answer with its pid, or wait for one."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # imports print
    import torch

    import vjepa_fast.training.loop  # noqa: F401  what takes seconds to import
    from vjepa_fast import train

    torch.set_num_threads(1)
    for line in sys.stdin:
        question = json.loads(line)
        if "wait" in question:
            _, status = os.waitpid(question["wait"], 0)
            print(os.waitstatus_to_exitcode(status), file=answers, flush=True)
            continue
        pid = os.fork()
        if pid:
            print(pid, file=answers, flush=True)
            continue
        descriptor = os.open(question["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.update(question["env"])
        limit = question["largest_file"]
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        sys.exit(train.main(question["arguments"]))


if __name__ == "__main__":
    main()
