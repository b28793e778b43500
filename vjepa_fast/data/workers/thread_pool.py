"""Threads that a hanging file system or decoder cannot take along: who is late is given up on."""

from collections.abc import Callable
from concurrent.futures import CancelledError, Future, wait
from queue import SimpleQueue
from threading import Lock, Thread, current_thread
from time import monotonic
from typing import Any, Protocol

from vjepa_fast.errors import UserError

SECONDS = 120.0  # to read and decode one clip: far beyond a busy machine, within anybody's patience
_CLOSING = 10.0  # seconds that `close` waits for what is running


class Watched(Protocol):
    """What does work in the background that may hang: threads, or `workers.WorkerProcesses`."""

    def submit(self, function: Callable, *arguments: Any, clips: int = 1) -> Future: ...
    def result(self, future: Future) -> Any: ...
    def close(self) -> None: ...


class TaskQueue:
    """What is submitted, in order, until it is closed; who takes from it keeps to the limits.

    Args:
        seconds: that a clip may take.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._tasks: SimpleQueue = SimpleQueue()
        self._lock = Lock()
        self._closed = False

    def submit(self, function: Callable, *arguments: Any, clips: int = 1) -> Future:
        """Have the function called, which works on so many clips; pass the future to `result`."""
        future: Future = Future()
        with self._lock:
            if self._closed:
                future.cancel()
            else:
                self._tasks.put((future, function, arguments, clips * self._seconds))
        return future

    def _drop(self, takers: int) -> None:
        """Cancel what has not started and tell the takers to end. With the lock held."""
        self._closed = True
        while not self._tasks.empty():
            self._tasks.get()[0].cancel()
        for _ in range(takers):
            self._tasks.put(None)


class WatchedThreads(TaskQueue):
    """`count` threads that run what is submitted, in order, for at most `seconds` a clip in it.

    A thread cannot be killed. One that is late is left behind, its future gets a UserError, and a
    new thread takes its place; all are daemons, so none of them keeps the program from ending.
    """

    def __init__(self, count: int, name: str, seconds: float = SECONDS) -> None:
        super().__init__(seconds)
        self._name = name
        self._running: dict[Future, tuple[Thread, float, float]] = {}  # with its start and limit
        self._threads: set[Thread] = set()
        for _ in range(count):
            self._start()

    def result(self, future: Future) -> Any:
        """Wait for what was submitted. Raises what it raised, UserError if it takes too long,
        CancelledError after `close`.
        """
        while not wait([future], min(1.0, self._seconds / 4)).done:
            if self._closed:
                raise CancelledError
            self._give_up_on_the_late()
        return future.result()

    def close(self) -> None:
        """Drop what has not started, wait a little for the rest."""
        with self._lock:
            threads = list(self._threads)
            self._drop(len(threads))
        deadline = monotonic() + _CLOSING
        for thread in threads:
            thread.join(max(0.0, deadline - monotonic()))

    def _start(self) -> None:
        thread = Thread(target=self._work, name=self._name, daemon=True)
        self._threads.add(thread)
        thread.start()

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            future, function, arguments, limit = task
            if not future.set_running_or_notify_cancel():
                continue
            with self._lock:
                self._running[future] = current_thread(), monotonic(), limit
            result = error = None
            try:
                result = function(*arguments)
            except BaseException as raised:  # noqa: BLE001 the one who waits gets it
                error = raised
            with self._lock:
                in_time = self._running.pop(future, None) is not None
            if not in_time:
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)
            del task, future, function, arguments, result, error  # a clip's memory, while idle

    def _give_up_on_the_late(self) -> None:
        late = {}
        with self._lock:
            now = monotonic()
            for future, (thread, start, limit) in list(self._running.items()):
                if now - start > limit:
                    late[future] = limit
                    del self._running[future]
                    self._threads.discard(thread)
                    self._start()
        for future, limit in late.items():
            future.set_exception(too_late(limit))


def too_late(limit: float) -> UserError:
    """What to say of work that has taken more than `limit` seconds."""
    return UserError(
        f"found that it takes more than {limit:g} s, expected a clip in far less, look whether its "
        "disk and file are well"
    )
