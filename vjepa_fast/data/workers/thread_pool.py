"""Work in threads that may hang: a timed-out task is abandoned, and its thread replaced.

For calls that cannot run in another process, such as DALI's pipeline. All other work that may crash
or hang runs in `process_pool.ProcessPool`, which can kill it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, wait
from queue import SimpleQueue
from threading import Lock, Thread, current_thread
from time import monotonic
from typing import Any, NamedTuple

from vjepa_fast.errors import UserError

CLIP_SECONDS = 120.0  # time limit to read and decode one clip: generous on a busy machine
_CLOSING_SECONDS = 10.0  # how long `close` waits for running tasks


class WorkerError(UserError):
    """A task has no result: it timed out, or its process crashed or was killed.

    Attributes:
        items: what the task had yielded before, if its function is a generator.
    """

    items: Sequence[Any] = ()


class Task(NamedTuple):
    """A submitted call and its time limit in seconds."""

    future: Future
    function: Callable
    arguments: tuple
    seconds: float


class TaskQueue:
    """Submitted tasks in order, until the queue is closed. The pool's threads take them out.

    Args:
        seconds: time limit of a task that is submitted without its own.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()  # None ends the thread that takes it
        self._lock = Lock()
        self._closed = False

    def submit(self, function: Callable, *arguments: Any, seconds: float | None = None) -> Future:
        """Queue a call.

        Args:
            function: called with `arguments`.
            seconds: time limit from its start on; None: the pool's.
        """
        future: Future = Future()
        limit = self._seconds if seconds is None else seconds
        with self._lock:
            if self._closed:
                future.cancel()
            else:
                self._tasks.put(Task(future, function, arguments, limit))
        return future

    def _close_queue(self, threads: int) -> None:
        """Cancel the tasks that have not started and tell the threads to end. Needs the lock."""
        self._closed = True
        while not self._tasks.empty():
            self._tasks.get().future.cancel()
        for _ in range(threads):
            self._tasks.put(None)


class ThreadPool(TaskQueue):
    """`count` threads that run tasks in order, each task for at most its time limit.

    A thread cannot be killed. A timed-out one is abandoned: its future gets a WorkerError, and a
    new thread takes its place. All are daemon threads, so none keeps the program from ending.

    Args:
        count: number of threads.
        name: name of the threads.
        seconds: time limit of a task that is submitted without its own.
    """

    def __init__(self, count: int, name: str, seconds: float = CLIP_SECONDS) -> None:
        super().__init__(seconds)
        self._name = name
        self._running: dict[Future, tuple[Thread, float, float]] = {}  # thread, start, limit
        self._threads: set[Thread] = set()
        for _ in range(count):
            self._start()

    def result(self, future: Future) -> Any:
        """Wait for a task's result; unlike `future.result()`, this abandons a timed-out task.

        Raises:
            WorkerError: it timed out.
            CancelledError: the pool was closed.
            BaseException: whatever the function raised.
        """
        while not wait([future], min(1.0, self._seconds / 4)).done:
            if self._closed:
                raise CancelledError
            self._abandon_timed_out()
        return future.result()

    def close(self) -> None:
        """Cancel the tasks that have not started and wait a few seconds for the running ones."""
        with self._lock:
            threads = list(self._threads)
            self._close_queue(len(threads))
        deadline = monotonic() + _CLOSING_SECONDS
        for thread in threads:
            thread.join(max(0.0, deadline - monotonic()))

    def _start(self) -> None:
        thread = Thread(target=self._run_tasks, name=self._name, daemon=True)
        self._threads.add(thread)
        thread.start()

    def _run_tasks(self) -> None:
        """Body of a thread."""
        while (task := self._tasks.get()) is not None:
            if not self._run(task):
                return
            del task  # it holds a clip; free it while the thread waits for the next one

    def _run(self, task: Task) -> bool:
        """Run a task. Returns False if it was abandoned; then another thread has taken over."""
        if not task.future.set_running_or_notify_cancel():
            return True
        with self._lock:
            self._running[task.future] = current_thread(), monotonic(), task.seconds
        result = error = None
        try:
            result = task.function(*task.arguments)
        except BaseException as raised:  # noqa: BLE001 passed on to whoever waits
            error = raised
        with self._lock:
            in_time = self._running.pop(task.future, None) is not None
        if in_time and error is None:
            task.future.set_result(result)
        elif in_time:
            task.future.set_exception(error)
        return in_time

    def _abandon_timed_out(self) -> None:
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
            future.set_exception(timed_out(limit))


def timed_out(seconds: float) -> WorkerError:
    """The error of a task that exceeded its time limit."""
    return WorkerError(
        f"found that it takes more than {seconds:g} s, expected far less; check the file and its "
        "disk"
    )
