"""Requests to stop a run: signals, and the end of its launcher."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from pathlib import Path

log = logging.getLogger("vjepa_fast")

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
_ECHO = 1.0  # seconds in which the same signal counts once, since several senders relay it


class StopRequests:
    """A context that records SIGTERM, SIGUSR1, SIGINT and SIGHUP; they do not end the process.

    The loop reads `reason` once a step. The same signal again, a second or more after the first,
    ends the process at once. A thread does that, since Python runs no signal handler while the main
    thread waits in a collective. (Launchers relay signals: Ctrl-C under DeepSpeed arrives as SIGINT
    from the terminal and as SIGTERM from the launcher. That counts as one request.)

    A SIGHUP that this process ignores since its start, as under `nohup`, stays ignored. Under
    `nohup torchrun` it does not: torchrun itself sends it on, and kills its processes 30 s later.

    The end of the launcher is also a reason to stop: killing the `deepspeed` command leaves its
    processes running.
    """

    def __init__(self) -> None:
        self._signal: str | None = None
        self._first: dict[int, float] = {}
        self._launcher = _launcher()

    @property
    def reason(self) -> str | None:
        """Why to stop, or None."""
        if self._signal is None and self._launcher and _launcher() != self._launcher:
            self._signal = "the launcher has ended"
        return self._signal

    def __enter__(self) -> StopRequests:
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._old_fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._old = {n: signal.signal(n, lambda *_: None) for n in SIGNALS if not _nohup(n)}
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_fd)
        self._writer.close()
        self._thread.join()
        self._reader.close()

    def _listen(self) -> None:
        while numbers := self._reader.recv(64):
            for number in numbers:
                if number in SIGNALS:
                    self._note(number)

    def _note(self, number: int) -> None:
        name, now = signal.Signals(number).name, time.monotonic()
        if now - self._first.setdefault(number, now) >= _ECHO:
            log.warning("%s again: stopping at once, without saving", name)
            os._exit(128 + number)
        if self._signal is None:
            self._signal = name
            log.info(
                "%s: finishing this step, saving and stopping; send it again to stop at once", name
            )


def _nohup(number: int) -> bool:
    return number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN


def _launcher() -> tuple[int, int] | None:
    """Process ids of the launcher (torchrun or DeepSpeed's) and of its parent.

    None under any other parent, which need not outlive this process.
    """
    parent = os.getppid()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return parent, 0
    if "deepspeed.launcher.launch" in _read(f"/proc/{parent}/cmdline"):
        after_name = _read(f"/proc/{parent}/stat").rpartition(")")[2].split()
        return parent, int(after_name[1])
    return None


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
