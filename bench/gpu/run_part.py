"""Runs one part of bench/gpu_check.py: commands in other processes, under a time limit."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vjepa_fast.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
TAIL = 40  # last lines of a log that go into report.json
Read = Callable[[Path], tuple[dict[str, Any], list[str]]]


@dataclass(frozen=True)
class Part:
    """The commands of one part and how to read their results.

    Attributes:
        name: name of its log and of its entry in report.json.
        title: its heading in report.md.
        commands: run one after the other in the repository's root.
        limit: seconds for all commands together.
        read: reads figures and lines of text from the report's folder. Raises UserError if a
            command exited with 0 but did not do its work.
        needs: modules; if one is not installed, the part is left out.
        environment: variables added to the caller's.
    """

    name: str
    title: str
    commands: Sequence[Sequence[str]]
    limit: float
    read: Read
    needs: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Outcome:
    """The result of a part; `why` is empty if it passed."""

    name: str
    title: str
    status: Literal["passed", "failed", "timed out", "left out"]
    why: str = ""
    seconds: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)

    @property
    def bad(self) -> bool:
        """Whether the part failed or timed out; being left out is neither."""
        return self.status in ("failed", "timed out")


def installed(module: str) -> bool:
    """Whether a module can be found, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package is missing
        return False


def _run(command: Sequence[str], log: Path, limit: float, environment: dict[str, str]) -> int:
    """Exit status. The command's whole process group is killed at its end or time limit."""
    with (
        log.open("ab") as file,
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process,
    ):
        try:
            return process.wait(limit)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def run_part(part: Part, folder: Path, left: float) -> Outcome:
    """Run a part; its log is `<name>.log` in `folder`.

    Args:
        left: seconds until the whole check must end.
    """
    outcome = Outcome(part.name, part.title, "passed")
    missing = [module for module in part.needs if not installed(module)]
    if missing:
        outcome.status, outcome.why = "left out", f"not installed here: {', '.join(missing)}"
        return outcome
    limit = min(part.limit, left)
    if limit < 1:
        outcome.status, outcome.why = "timed out", "the whole check was out of time before it began"
        return outcome
    log = folder / f"{part.name}.log"
    log.unlink(missing_ok=True)
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": paths, **part.environment}  # of this checkout
    start = time.monotonic()
    try:
        for command in part.commands:
            rest = limit - (time.monotonic() - start)
            status = _run(command, log, max(0.0, rest), environment)
            if status:
                outcome.status, outcome.why = "failed", f"exit status {status}"
                break
        else:
            outcome.figures, outcome.lines = part.read(folder)
    except subprocess.TimeoutExpired:
        outcome.status, outcome.why = "timed out", f"killed after {limit:.0f} s"
    except UserError as error:
        outcome.status, outcome.why = "failed", str(error)
    except (OSError, ValueError, LookupError, TypeError) as error:
        outcome.status = "failed"
        outcome.why = f"its results are unreadable: {type(error).__name__} ({error})"
    outcome.seconds = time.monotonic() - start
    if outcome.bad and log.exists():
        outcome.log = log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:]
    return outcome
