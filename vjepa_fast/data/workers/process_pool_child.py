"""What runs in the processes of `workers.WorkerProcesses`: a server that forks workers, and those.

The server has imported what they need and has one thread, so a fork is safe, takes milliseconds and
shares that memory. All of them end when the process that asked for them is gone, however it went.
"""

import gc
import os
import pickle
import select
import signal
import socket
import time
import traceback
from collections.abc import Sequence
from importlib import import_module
from multiprocessing.connection import Connection
from threading import Thread

import numpy as np

from vjepa_fast.errors import UserError

_GONE_AFTER = 1.0  # seconds; who is stuck in a dead disk goes when that answers


def serve(control: int, modules: Sequence[str]) -> None:
    """Import modules, then do what comes over the socket `control`, until its other end is closed.

    A message with two descriptors (the worker's socket, the file for its arrays) is answered by the
    pid of a new worker; a worker's pid, once it is ended, by its exit code (minus a signal).
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if ignored, exit codes would be lost
    # A terminal and launchers send these to the whole family; who asked for the workers decides
    # when they end, and decodes to the end of its step.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    for module in modules:
        import_module(module)
    gc.freeze()  # or each worker's first collection copies all of it
    lingering: set[int] = set()
    with socket.socket(fileno=control) as server:
        while True:
            message, descriptors, _, _ = socket.recv_fds(server, 64, 2)
            if not message:
                return
            if not descriptors:
                server.send(b"%d" % _end(int(message), lingering))
                continue
            pid = os.fork()
            if pid == 0:
                server.close()
                try:
                    _work(*descriptors)
                finally:
                    os._exit(1)
            for descriptor in descriptors:
                os.close(descriptor)
            server.send(b"%d" % pid)


def _end(pid: int, lingering: set[int]) -> int:
    """Kill a worker, which does nothing to one that has ended: its exit code."""
    os.kill(pid, signal.SIGKILL)
    lingering.add(pid)
    codes, deadline = {}, time.monotonic() + _GONE_AFTER
    while pid not in codes and time.monotonic() < deadline:
        for one in lingering:
            if (ended := os.waitpid(one, os.WNOHANG))[0]:
                codes[one] = os.waitstatus_to_exitcode(ended[1])
        lingering.difference_update(codes)
        if pid not in codes:
            time.sleep(0.002)
    return codes.get(pid, -signal.SIGKILL)


def _work(link: int, memory: int) -> None:
    """Call the functions that come over the socket `link`; arrays go back in the file `memory`."""
    Thread(target=_leave_with, args=(link,), daemon=True).start()
    connection = Connection(link)
    while True:
        message = connection.recv_bytes()
        try:
            function, arguments = pickle.loads(message)
            found = function(*arguments)
            if isinstance(found, np.ndarray):
                _write(memory, np.ascontiguousarray(found))
                reply = "array", (found.dtype.str, found.shape)
            else:
                reply = "value", found
            answer = pickle.dumps(reply)
        except BaseException as error:  # noqa: BLE001 the one who waits gets it
            answer = _as_answer(error)
        connection.send_bytes(answer)
        del message  # and with the next, nothing of this call is kept
        function = arguments = found = reply = answer = None


def _as_answer(error: BaseException) -> bytes:
    trace = "".join(traceback.format_exception(error))
    if not isinstance(error, UserError):
        error.add_note(f"In a worker process:\n{trace}")
    try:
        answer = pickle.dumps(("error", error))
        pickle.loads(answer)  # some can be written, but not read
    except Exception:  # noqa: BLE001 whatever it holds
        answer = pickle.dumps(("error", RuntimeError(trace)))
    return answer


def _write(memory: int, array: np.ndarray) -> None:
    content, done = array.reshape(-1).view(np.uint8), 0
    while done < content.size:
        done += os.pwrite(memory, content[done:], done)


def _leave_with(link: int) -> None:
    """End this process, whatever it is doing, when nobody is at the other end any more."""
    poll = select.poll()
    poll.register(link, select.POLLRDHUP)
    poll.poll()
    os._exit(0)
