"""Processes that decode: one that crashes, hangs or is killed costs the clip that it was at.

Not `multiprocessing`: its workers import the user's script again, and outlive a parent that is
killed.
"""

import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from functools import partial
from multiprocessing.connection import Connection
from signal import SIGKILL
from threading import Lock, Thread
from typing import Any
from weakref import finalize

import numpy as np

from vjepa_fast.data.workers.thread_pool import SECONDS, TaskQueue, too_late
from vjepa_fast.errors import UserError

_MODULES = ("vjepa_fast.data.decode.pyav",)  # what workers have imported before they are forked
_CLOSING = 10.0  # seconds that `close` waits for its threads, which have nothing left to do
_STARTING = 300.0  # seconds to import them, on a busy machine with a cold disk
_ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}


class WorkerProcesses(TaskQueue):
    """`count` processes that run what is submitted, in order, for at most `seconds` a clip in it.
    They start when they are first needed.

    Functions are importable ones; they, their arguments and results are pickled, but a result that
    is an array comes through shared memory. A process that is late is killed. Where one ends before
    its function, the future gets a UserError; either way another takes its place.
    """

    def __init__(self, count: int, name: str, seconds: float = SECONDS) -> None:
        super().__init__(seconds)
        self._workers: set[_Worker] = set()
        self._threads = [Thread(target=self._work, name=name, daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def prepare(self) -> None:
        """Have what they import imported, for the first of them to start at once; don't wait."""
        _server()

    @property
    def pids(self) -> list[int]:
        """Of the processes that are there now."""
        with self._lock:
            return sorted(worker.pid for worker in self._workers)

    def result(self, future: Future) -> Any:
        """Wait for what was submitted. Raises what it raised, UserError if it takes too long or its
        process ends, CancelledError after `close`.
        """
        return future.result()

    def close(self) -> None:
        """Drop what has not started, kill what is running."""
        with self._lock:
            if self._closed:
                return
            workers = list(self._workers)
            self._drop(len(self._threads))
        for worker in workers:
            worker.end()
        for thread in self._threads:
            thread.join(_CLOSING)

    def _work(self) -> None:
        """One thread for each process; it waits, and takes no time from the training's."""
        worker = None
        while (task := self._tasks.get()) is not None:
            future, function, arguments, limit = task
            if not future.set_running_or_notify_cancel():
                continue
            try:
                if worker is not None and worker.has_ended():
                    self._discard(worker)
                    worker = None
                worker = worker or self._start()
                finish = partial(future.set_result, worker.call(function, arguments, limit))
            except (_EndedError, _LateError) as ended:
                code = self._discard(worker)
                worker = None
                error = too_late(limit) if isinstance(ended, _LateError) else _crashed(code)
                finish = partial(future.set_exception, CancelledError() if self._closed else error)
            except BaseException as raised:  # noqa: BLE001 the one who waits gets it
                finish = partial(future.set_exception, raised)
            finish()
            del task, future, function, arguments, finish  # a clip's memory, while idle
        self._discard(worker)

    def _start(self) -> "_Worker":
        worker = _Worker()
        with self._lock:
            self._workers.add(worker)
            closed = self._closed
        if closed:
            worker.end()
        return worker

    def _discard(self, worker: "_Worker | None") -> int | None:
        if worker is None:
            return None
        with self._lock:
            self._workers.discard(worker)
        return worker.close()


class _EndedError(Exception):
    """A worker process is no more."""


class _LateError(Exception):
    """A worker process has not answered in time."""


class _Worker:
    """A process, the socket to it, and the file in memory (it has no place in /dev/shm, which
    containers keep small) that its arrays come in.
    """

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self._memory = os.memfd_create("vjepa-clip")
        try:
            with theirs:
                self._server, self.pid = _fork(theirs.fileno(), self._memory)
        except BaseException:
            os.close(self._memory)
            ours.close()
            raise
        self._connection = Connection(ours.detach())
        self._code: int | None = None
        self._ended = False
        self._lock = Lock()

    def call(self, function: Callable, arguments: tuple, seconds: float) -> Any:
        """What the function returns or raises there. Raises _EndedError if the process ends before,
        _LateError if it takes too long.
        """
        message = pickle.dumps((function, arguments))
        try:
            self._connection.send_bytes(message)
            if not self._connection.poll(seconds):
                raise _LateError
            answer = self._connection.recv_bytes()
        except (EOFError, OSError) as error:
            raise _EndedError from error
        kind, value = pickle.loads(answer)
        if kind == "error":
            raise value
        return self._array(*value) if kind == "array" else value

    def has_ended(self) -> bool:
        """Whether the process has ended though nothing was asked of it."""
        return self._connection.poll(0)

    def end(self) -> int | None:
        """Kill the process; its exit code, None where that cannot be told."""
        with self._lock:
            if not self._ended:
                self._code = self._server.end(self.pid)
                self._ended = True
        return self._code

    def close(self) -> int | None:
        """The same, and nothing can be called any more."""
        code = self.end()
        self._connection.close()
        os.close(self._memory)
        return code

    def _array(self, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        array = np.empty(shape, dtype)
        content, done = array.reshape(-1).view(np.uint8), 0
        while done < content.size:
            read = os.preadv(self._memory, [content[done:]], done)
            if not read:
                raise _EndedError
            done += read
        return array


class _Server:
    """The process that workers are forked from."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.lost = False
        self._lock = Lock()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(_STARTING)
        program = (
            f"import sys; sys.path[:] = {[str(place) for place in sys.path]!r}; "
            "from vjepa_fast.data.workers.process_pool_child import serve; "
            f"serve({theirs.fileno()}, {_MODULES!r})"
        )
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", program],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=os.environ | _ONE_THREAD,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for the parent, whose end is theirs
            )
        finalize(self, _stop, self._control, process, self.owner)

    def fork(self, link: int, memory: int) -> int:
        """The pid of a new worker. Raises _EndedError if the server is gone."""
        with self._lock:
            try:
                socket.send_fds(self._control, [b"fork"], [link, memory])
                return int(self._control.recv(64))
            except (OSError, ValueError) as error:  # no answer is b""
                self.lost = True
                raise _EndedError(str(error)) from error

    def end(self, pid: int) -> int | None:
        """Kill a worker: its exit code, None if the server is gone (then workers end with their
        sockets)."""
        with self._lock:
            try:
                self._control.send(b"%d" % pid)
                return int(self._control.recv(64))
            except (OSError, ValueError):
                self.lost = True
                return None


_servers: list[_Server] = []  # one for this process, or none yet
_servers_lock = Lock()


def _server() -> _Server:
    with _servers_lock:
        if not _servers or _servers[0].lost or _servers[0].owner != os.getpid():
            _servers[:] = [_Server()]
        return _servers[0]


def _fork(link: int, memory: int) -> tuple[_Server, int]:
    """A new worker: its server and its pid. Raises RuntimeError where there can be none."""
    for _ in range(2):  # a server that has ended since it was last needed is started again
        server = _server()
        try:
            return server, server.fork(link, memory)
        except _EndedError as ended:
            trouble = ended
    raise RuntimeError(
        f"data.num_threads: found that no decoding process starts ({trouble}), expected one for "
        "each; look for free memory and at what is printed above, or ask for fewer"
    )


def _stop(control: socket.socket, process: subprocess.Popen, owner: int) -> None:
    control.close()
    if owner == os.getpid():
        process.kill()
        process.wait()


def _crashed(code: int | None) -> UserError:
    if code is None or code >= 0:
        how = "its process ended" + (f" (status {code})" if code else "")
    else:
        how = f"FFmpeg crashed (signal {-code})"
        if code == -SIGKILL:
            how += ", or was killed, perhaps since memory ran out"
    return UserError(
        f"found that {how}, expected it to decode, look for free memory, index its folder again or "
        "remove it"
    )
