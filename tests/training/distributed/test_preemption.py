"""Signals that stop a run, and the one that an inherited "ignore" keeps away from it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from threading import Event

import pytest

from vjepa_fast.training.distributed.preemption import StopRequests


@pytest.fixture
def hangup() -> Iterator[None]:
    before = signal.getsignal(signal.SIGHUP)
    yield
    signal.signal(signal.SIGHUP, before)


def first_reason(*numbers: int) -> str | None:
    """The reason to stop after these signals, which arrive in this order."""
    with StopRequests() as stopping:
        for number in numbers:
            os.kill(os.getpid(), number)
        for _ in range(1000):
            if stopping.reason:
                break
            Event().wait(0.01)
        return stopping.reason


def test_a_hangup_stops_unless_it_is_ignored_from_the_start(hangup: None) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    assert first_reason(signal.SIGHUP, signal.SIGUSR1) == "SIGHUP"
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    assert first_reason(signal.SIGHUP, signal.SIGUSR1) == "SIGUSR1"
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
