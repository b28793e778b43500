"""Trains and probes the runs of a study, several at a time, each as a program of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Lock

from vjepa_fast.errors import UserError
from vjepa_fast.studies.plan import PlannedProbe, PlannedRun

_SIGNALS = signal.SIGTERM, signal.SIGHUP
_TAIL = 4000  # characters of a program's log that are searched for its error


class Programs:
    """Programs that run at the same time and are ended together."""

    def __init__(self, threads: int) -> None:
        self._environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        self._running: set[subprocess.Popen] = set()
        self._lock, self._stopping = Lock(), Event()

    def run(self, arguments: Sequence[str], log: Path) -> None:
        """Run a module of ours to its end; its output goes to `log`.

        Raises:
            UserError: it failed, in its own words; or all programs are being ended.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            start = output.tell()
            with self._lock:
                if self._stopping.is_set():
                    raise UserError("found an interrupt, expected to run all of the study")
                # A session of its own: Ctrl-C reaches it by `stop` alone, once.
                program = subprocess.Popen(
                    [sys.executable, "-m", *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=self._environment,
                    start_new_session=True,
                )
                self._running.add(program)
            status = program.wait()
            with self._lock:
                self._running.discard(program)
        if self._stopping.is_set():
            raise UserError("found an interrupt, expected to run all of the study")
        if status:
            raise UserError(_reason(log, start, status))

    def stop(self) -> None:
        """End all programs; those that train save first."""
        with self._lock:
            self._stopping.set()
            for program in self._running:
                program.send_signal(signal.SIGTERM)


def run_study(
    runs: Sequence[PlannedRun], jobs: int, report: Callable[[str, int, int], None]
) -> list[str]:
    """Train and probe what is not done yet.

    Args:
        runs: each after those that it needs.
        jobs: how many at a time; they share the cores.
        report: is told what was done, how many runs are done, and of how many.

    Returns:
        why runs failed; the others are done.

    Raises:
        KeyboardInterrupt: Ctrl-C, SIGTERM or SIGHUP, with how far it came; the same call goes on
            where it was stopped.
    """
    cores = len(os.sched_getaffinity(0))
    programs = Programs(max(1, cores // jobs))
    waiting, done, failed = list(runs), set(), {}
    running: dict[Future, PlannedRun] = {}
    with _signals_interrupt(), ThreadPoolExecutor(jobs) as pool:
        try:
            while waiting or running:
                for run in list(waiting):
                    broken = [home for home in run.needs if home in failed]
                    if broken:
                        waiting.remove(run)
                        failed[run.home] = f"{run.home}: needs {broken[0]}, which failed"
                    elif done.issuperset(run.needs) and len(running) < jobs:
                        waiting.remove(run)
                        running[pool.submit(_train_and_probe, run, programs)] = run
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    run = running.pop(future)
                    error = future.exception()
                    if error is None:
                        done.add(run.home)
                        report(f"{run.variant}, seed {run.seed}", len(done), len(runs))
                    elif isinstance(error, UserError):
                        failed[run.home] = str(error)
                        report(str(error), len(done), len(runs))
                    else:
                        raise error
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"after {len(done)} of {len(runs)} runs") from None
        finally:
            programs.stop()
    return list(failed.values())


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Signals that would end this process alone, and leave its programs, act as Ctrl-C does; those
    that are ignored, as SIGHUP is under nohup, stay so."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signals = [s for s in _SIGNALS if signal.getsignal(s) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _train_and_probe(run: PlannedRun, programs: Programs) -> None:
    if not run.is_done:
        if run.folder != run.home:
            raise UserError(
                f"{run.folder}: found that this run was removed, expected it to stay until it is "
                "probed; run the study again, to train it"
            )
        options = [part for override in run.overrides for part in ("--set", override)]
        config = ["--config", str(run.config_file)]
        programs.run(["vjepa_fast.train", *config, *options], run.folder / "study.log")
    for probe in run.probes:
        if not probe.is_done:
            _probe(probe, programs)


def _probe(probe: PlannedProbe, programs: Programs) -> None:
    where = ["--checkpoint", str(probe.checkpoint), "--output", str(probe.output)]
    log = probe.output / "study.log"
    programs.run(["vjepa_fast.cli", "probe", *where, *probe.options], log)
    (probe.output / "options.json").write_text(json.dumps(probe.asked) + "\n", encoding="utf-8")


def _reason(log: Path, start: int, status: int) -> str:
    """The error that a program printed last, with its log, which has earlier attempts up to `start`
    bytes."""
    text = log.read_bytes()[start:].decode("utf-8", errors="replace")
    lines = text[-_TAIL:].strip().splitlines()
    said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    found = said[-1] if said else f"found exit status {status} ({lines[-1] if lines else 'silent'})"
    return f"{found} [{log}]"
