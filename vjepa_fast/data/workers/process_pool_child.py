"""The other side of `process_pool`: the fork server, and the children that it forks.

The server has imported the modules that the children need and has a single thread, so forking it is
safe, takes milliseconds and shares the modules' memory. The server and its children exit when the
parent process is gone, even if it was killed.
"""

from __future__ import annotations

import gc
import os
import pickle
import select
import signal
import socket
import time
import traceback
from collections.abc import Generator
from importlib import import_module
from multiprocessing.connection import Connection
from threading import Thread

import numpy as np

from vjepa_fast.errors import UserError

MESSAGE_BYTES = 4096  # the longest message to the server
_KILL_SECONDS = 1.0  # a process that waits for a dead disk ends only when the disk answers


def serve(control: int) -> None:
    """Answer requests on the socket `control` until its other end is closed.

    Requests, one message each:
        import NAME ...: import these modules, for all later children; no reply.
        fork: fork a child. The message carries two file descriptors: the child's socket and the
            memory file for its arrays. Reply: the child's pid.
        kill PID: kill a child, which may have ended already. Reply: its exit code; -N for signal N.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would discard exit codes
    # Terminals and launchers send these to all processes of a group. The parent decides when its
    # children end: after SIGTERM it still finishes a step, which needs clips.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    unreaped: set[int] = set()
    with socket.socket(fileno=control) as server:
        while True:
            message, descriptors, _, _ = socket.recv_fds(server, MESSAGE_BYTES, 2)
            request, *arguments = message.decode().split() or [""]
            if request == "import":
                for module in arguments:
                    import_module(module)
                gc.freeze()  # else each child's first collection would copy the modules' memory
            elif request == "fork":
                pid = os.fork()
                if pid == 0:
                    server.close()
                    try:
                        _run_calls(*descriptors)
                    finally:
                        os._exit(1)
                for descriptor in descriptors:
                    os.close(descriptor)
                server.send(b"%d" % pid)
            elif request == "kill":
                server.send(b"%d" % _kill(int(arguments[0]), unreaped))
            else:  # an empty message: the other end is closed
                return


def _kill(pid: int, unreaped: set[int]) -> int:
    """Kill a child and wait for its exit code, but not for long. Reaps earlier ones as well."""
    os.kill(pid, signal.SIGKILL)
    unreaped.add(pid)
    codes: dict[int, int] = {}
    deadline = time.monotonic() + _KILL_SECONDS
    while pid not in codes and time.monotonic() < deadline:
        for child in unreaped:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                codes[child] = os.waitstatus_to_exitcode(status)
        unreaped.difference_update(codes)
        if pid not in codes:
            time.sleep(0.002)
    return codes.get(pid, -signal.SIGKILL)


def _run_calls(link: int, memory: int) -> None:
    """Body of a child: answer the calls that come over the socket `link`."""
    Thread(target=_exit_with_parent, args=(link,), daemon=True).start()
    connection = Connection(link)
    while True:  # nothing of a call is kept in a variable here, so its memory is free while idle
        connection.send_bytes(_answer(connection, memory))


def _answer(connection: Connection, memory: int) -> bytes:
    """Receive a pickled call (function, arguments) and make it.

    What a generator yields is sent at once, as ("item", value).

    Returns:
        pickled ("value", result), ("items", None) at the end of a generator, ("array", (dtype,
        shape)) for an array whose bytes are now in the file `memory`, or ("error", exception).
    """
    call = connection.recv_bytes()
    try:
        function, arguments = pickle.loads(call)
        result = function(*arguments)
        if isinstance(result, Generator):
            for item in result:
                connection.send_bytes(pickle.dumps(("item", item)))
            return pickle.dumps(("items", None))
        if isinstance(result, np.ndarray):
            _write(memory, np.ascontiguousarray(result))
            return pickle.dumps(("array", (result.dtype.str, result.shape)))
        return pickle.dumps(("value", result))
    except BaseException as error:  # noqa: BLE001 passed on to the parent
        return _pickled(error)


def _pickled(error: BaseException) -> bytes:
    trace = "".join(traceback.format_exception(error))
    if not isinstance(error, UserError):
        error.add_note(f"In a worker process:\n{trace}")
    try:
        answer = pickle.dumps(("error", error))
        pickle.loads(answer)  # some exceptions can be pickled but not unpickled
    except Exception:  # noqa: BLE001 any class may fail in its own way
        answer = pickle.dumps(("error", RuntimeError(trace)))
    return answer


def _write(memory: int, array: np.ndarray) -> None:
    content, done = array.reshape(-1).view(np.uint8), 0
    while done < content.size:
        done += os.pwrite(memory, content[done:], done)


def _exit_with_parent(link: int) -> None:
    """Wait until the other end of `link` is closed, then exit, whatever the main thread is at."""
    poll = select.poll()
    poll.register(link, select.POLLRDHUP)
    poll.poll()
    os._exit(0)
