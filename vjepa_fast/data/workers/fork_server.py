"""The parent's side of the fork server: it starts it, forks children and calls functions in them.

`process_pool` has the picture, `process_pool_child` the other side.
"""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from threading import Lock
from typing import Any
from weakref import finalize

import numpy as np

_STARTING_SECONDS = 300.0  # to import the modules on a busy machine with a cold disk
_SINGLE_THREADED = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}


class EndedError(Exception):
    """A child process, or the fork server, has ended."""


class TimeOutError(Exception):
    """A child has not answered in time."""


class Child:
    """A child process, the socket to it, and the memory file through which its arrays come.

    The file is a memfd: /dev/shm is small in containers.
    """

    def __init__(self, modules: Sequence[str]) -> None:
        ours, theirs = socket.socketpair()
        self._memory = os.memfd_create("vjepa-clip")
        try:
            with theirs:
                self._server, self.pid = _fork(modules, theirs.fileno(), self._memory)
        except BaseException:
            os.close(self._memory)
            ours.close()
            raise
        self._connection = Connection(ours.detach())
        self._code: int | None = None
        self._killed = False
        self._lock = Lock()

    def call(self, function: Callable, arguments: tuple, seconds: float, items: list) -> Any:
        """Call a function in the child. Raises what it raised.

        Args:
            seconds: time limit; of a generator, for each of its items.
            items: takes the items of a generator.

        Returns:
            Its result; of a generator, `items`.

        Raises:
            EndedError: the child ended during the call.
            TimeOutError: no answer within `seconds`.
        """
        message = pickle.dumps((function, arguments))
        try:
            self._connection.send_bytes(message)
        except OSError as error:
            raise EndedError from error
        kind, value = self._receive(seconds)
        while kind == "item":
            items.append(value)
            kind, value = self._receive(seconds)
        if kind == "error":
            raise value
        if kind == "items":
            return items
        return self._read_array(*value) if kind == "array" else value

    def _receive(self, seconds: float) -> tuple[str, Any]:
        """One message of the child: what it is, and its value."""
        try:
            if not self._connection.poll(seconds):
                raise TimeOutError
            answer = self._connection.recv_bytes()
        except (EOFError, OSError) as error:
            raise EndedError from error
        return pickle.loads(answer)

    def has_ended(self) -> bool:
        """Whether the child ended while idle: then its socket is readable, at the end of file."""
        return self._connection.poll(0)

    def kill(self) -> int | None:
        """Kill the process unless it has ended. Returns its exit code, None if unknown."""
        with self._lock:
            if not self._killed:
                self._code = self._server.kill(self.pid)
                self._killed = True
        return self._code

    def close(self) -> int | None:
        """Kill the process, close its socket and its memory file. Returns its exit code."""
        code = self.kill()
        self._connection.close()
        os.close(self._memory)
        return code

    def _read_array(self, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        array = np.empty(shape, dtype)
        content, done = array.reshape(-1).view(np.uint8), 0
        while done < content.size:
            read = os.preadv(self._memory, [content[done:]], done)
            if not read:
                raise EndedError
            done += read
        return array


class ForkServer:
    """The process that forks the children, and the socket to it."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.lost = False
        self._imported: set[str] = set()
        self._lock = Lock()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(_STARTING_SECONDS)
        program = (
            f"import sys; sys.path[:] = {[str(entry) for entry in sys.path]!r}; "
            "from vjepa_fast.data.workers.process_pool_child import serve; "
            f"serve({theirs.fileno()})"
        )
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", program],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=os.environ | _SINGLE_THREADED,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for the parent, which ends its children
            )
        finalize(self, _stop, self._control, process, self.owner)

    def preload(self, modules: Sequence[str]) -> None:
        """Have modules imported for later children; doesn't wait."""
        with self._lock:
            self._preload(modules)

    def fork(self, modules: Sequence[str], link: int, memory: int) -> int:
        """Fork a child that has `modules`. Returns its pid.

        Raises:
            EndedError: the server has ended.
        """
        with self._lock:
            self._preload(modules)
            try:
                socket.send_fds(self._control, [b"fork"], [link, memory])
                return int(self._control.recv(64))
            except (OSError, ValueError) as error:  # ValueError: b"", at the end of file
                self.lost = True
                raise EndedError(str(error)) from error

    def kill(self, pid: int) -> int | None:
        """Kill a child. Returns its exit code; None if the server has ended: then its children
        exit when their sockets are closed."""
        with self._lock:
            try:
                self._control.send(b"kill %d" % pid)
                return int(self._control.recv(64))
            except (OSError, ValueError):
                self.lost = True
                return None

    def _preload(self, modules: Sequence[str]) -> None:
        new = [module for module in modules if module not in self._imported]
        if new:
            try:
                self._control.send(" ".join(["import", *new]).encode())
            except OSError:
                self.lost = True
            self._imported.update(new)


_servers: list[ForkServer] = []  # this process's server, if it has one
_servers_lock = Lock()


def fork_server() -> ForkServer:
    """This process's server, started if it has none."""
    with _servers_lock:
        if not _servers or _servers[0].lost or _servers[0].owner != os.getpid():
            _servers[:] = [ForkServer()]
        return _servers[0]


def _fork(modules: Sequence[str], link: int, memory: int) -> tuple[ForkServer, int]:
    """Fork a child: its server and its pid. Raises RuntimeError if no child can be started."""
    for _ in range(2):  # the second time with a new server, if the first one was killed
        server = fork_server()
        try:
            return server, server.fork(modules, link, memory)
        except EndedError as ended:
            trouble = ended
    raise RuntimeError(
        f"found that no worker process starts ({trouble}), expected data.num_workers or --workers "
        "of them; check for free memory and read the output above, or use fewer"
    )


def _stop(control: socket.socket, process: subprocess.Popen, owner: int) -> None:
    control.close()
    if owner == os.getpid():  # not in a fork of the owner
        process.kill()
        process.wait()
