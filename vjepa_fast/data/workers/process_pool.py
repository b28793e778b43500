"""Run functions in processes that may crash, hang or be killed: only that one call is lost.

    parent process                          fork server             child, one of `count`
    submit(f, x) -> queue
    thread i  --- fork, 2 descriptors --->  os.fork()  ---------->  waits at its socket
              --- pickle(f, x) ---------------------------------->  result = f(x)
              <-- pickle(result), or the exception that f raised --
              <-- an array: shape by the socket, bytes by a memfd -
    no answer within `seconds`, or the socket closes (a crash):
              --- kill pid -------------->  SIGKILL, waitpid
              <-- exit code --------------
    future.set_exception(WorkerError); the next task gets a new child

The server (`process_pool_child.serve`) imports the modules that children need once; each process
has one server for all its pools. `multiprocessing` would not do: its workers import the user's
script again, and outlive a parent that is killed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from itertools import islice
from queue import SimpleQueue
from signal import SIGKILL
from threading import Thread
from typing import Any, TypeVar

from vjepa_fast.data.workers.fork_server import Child, EndedError, TimeOutError, fork_server
from vjepa_fast.data.workers.thread_pool import (
    CLIP_SECONDS,
    Task,
    TaskQueue,
    WorkerError,
    timed_out,
)

_CLOSING_SECONDS = 10.0  # how long `close` waits for its threads, whose children are dead

Item = TypeVar("Item")


class ProcessPool(TaskQueue):
    """`count` processes that run tasks in order, each task for at most its time limit.

    Functions must be importable. They, their arguments and results are pickled; a result that is an
    array comes through shared memory; the result of a generator is the list of its items. A process
    that times out is killed. Where a process crashes, is killed or times out, the future gets a
    WorkerError and the next task a new process. Processes start when they are first needed.

    Args:
        count: number of processes.
        name: name of the parent's threads, one per process.
        seconds: time limit of a task that is submitted without its own.
        modules: modules that the fork server imports once; others are imported in each process.
    """

    def __init__(
        self,
        count: int,
        name: str,
        seconds: float = CLIP_SECONDS,
        modules: Sequence[str] = (),
    ) -> None:
        super().__init__(seconds)
        self._modules = modules
        self._children: set[Child] = set()
        self._threads = [
            Thread(target=self._run_tasks, name=name, daemon=True) for _ in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> ProcessPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def prepare(self) -> None:
        """Start importing the modules, so that the first process starts at once; don't wait."""
        fork_server().preload(self._modules)

    @property
    def pids(self) -> list[int]:
        """The process ids of the running processes."""
        with self._lock:
            return sorted(child.pid for child in self._children)

    def imap(
        self,
        function: Callable[[Item], Any],
        items: Iterable[Item],
        seconds: Callable[[Item], float] | None = None,
        chunk_size: int = 8,
    ) -> Iterator[tuple[Item, Any]]:
        """Call a function for each item; yields (item, result) in the order of completion.

        The result is a WorkerError where the item's process timed out, crashed or was killed.

        Args:
            items: taken as they are needed: each process has one chunk running and one waiting.
            seconds: time limit of an item; None: the pool's.
            chunk_size: items that a process gets at once, so that it need not wait for the next.

        Raises:
            BaseException: whatever the function raised.
        """
        items = iter(items)
        unfinished: list[list[Item]] = []  # the rests of chunks whose process ended
        running: dict[Future, list[Item]] = {}
        done: SimpleQueue[Future] = SimpleQueue()
        while True:
            while len(running) < 2 * len(self._threads):
                chunk = unfinished.pop() if unfinished else list(islice(items, chunk_size))
                if not chunk:
                    break
                limit = max(map(seconds, chunk)) if seconds else None
                future = self.submit(_call_each, function, chunk, seconds=limit)
                running[future] = chunk
                future.add_done_callback(done.put)
            if not running:
                return
            future = done.get()
            chunk = running.pop(future)
            try:
                results = future.result()
            except WorkerError as error:
                results = [*error.items, error]
            yield from zip(chunk, results, strict=False)
            if rest := chunk[len(results) :]:
                unfinished.append(rest)

    def close(self) -> None:
        """Cancel the tasks that have not started and kill the running ones."""
        with self._lock:
            if self._closed:
                return
            children = list(self._children)
            self._close_queue(len(self._threads))
        for child in children:
            child.kill()
        for thread in self._threads:
            thread.join(_CLOSING_SECONDS)

    def _run_tasks(self) -> None:
        """Body of a thread: it serves one child. It waits most of the time, without the GIL."""
        child = None
        while (task := self._tasks.get()) is not None:
            child = self._run(task, child)
            del task  # it holds a clip; free it while the thread waits for the next one
        self._discard(child)

    def _run(self, task: Task, child: Child | None) -> Child | None:
        """Run a task in a child, a new one if needed. Returns the child unless it ended."""
        if not task.future.set_running_or_notify_cancel():
            return child
        items: list[Any] = []
        try:
            if child is not None and child.has_ended():
                self._discard(child)
                child = None
            child = child or self._start()
            result = child.call(task.function, task.arguments, task.seconds, items)
        except (EndedError, TimeOutError) as ended:
            code = self._discard(child)
            late = isinstance(ended, TimeOutError)
            error = timed_out(task.seconds) if late else _ended(code)
            error.items = items
            task.future.set_exception(CancelledError() if self._closed else error)
            return None
        except BaseException as error:  # noqa: BLE001 passed on to whoever waits
            task.future.set_exception(error)
        else:
            task.future.set_result(result)
        return child

    def _start(self) -> Child:
        child = Child(self._modules)
        with self._lock:
            self._children.add(child)
            closed = self._closed
        if closed:  # `close` has not seen this one
            child.kill()
        return child

    def _discard(self, child: Child | None) -> int | None:
        """Kill a child and free what belongs to it. Returns its exit code."""
        if child is None:
            return None
        with self._lock:
            self._children.discard(child)
        return child.close()


def _call_each(function: Callable[[Item], Any], items: list[Item]) -> Iterator[Any]:
    yield from map(function, items)


def _ended(code: int | None) -> WorkerError:
    """The error of a task whose process ended with an exit code (-N for signal N)."""
    if code is None or code >= 0:
        how = "its process ended" + (f" (status {code})" if code else "")
    else:
        how = f"FFmpeg crashed (signal {-code})"
        if code == -SIGKILL:
            how += ", or was killed, perhaps because memory ran out"
    return WorkerError(
        f"found that {how}, expected it to finish; check for free memory, index its folder again "
        "or remove the file"
    )
