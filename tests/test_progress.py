"""Progress: a bar on a terminal, few lines elsewhere, and no bar that goes another way."""

import io
import logging
import math
import os
import pty
import subprocess
import sys
import termios

import pytest

from tests.helpers.house import House
from tests.helpers.paths import REPOSITORY
from vjepa_fast import progress
from vjepa_fast.progress import with_progress

PROGRAM = """
import logging
from vjepa_fast.progress import with_progress
logging.basicConfig(level=logging.INFO, format="%(message)s")
assert list(with_progress(range(2000), "counting", 2000, "number")) == list(range(2000))
"""


def run(stderr):
    subprocess.run([sys.executable, "-c", PROGRAM], stderr=stderr, cwd=REPOSITORY, check=True)


@pytest.fixture
def lines(monkeypatch):
    """The log lines of a stderr that is no terminal."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    found = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())
    monkeypatch.setattr(progress.log, "handlers", [handler])
    monkeypatch.setattr(progress.log, "level", logging.INFO)
    return found


def test_a_file_has_no_bar(tmp_path):
    path = tmp_path / "log"
    with path.open("wb") as file:
        run(file)
    text = path.read_bytes()
    assert b"\r" not in text and b"it/s" not in text
    assert text.splitlines()[-1].startswith(b"counting: 2000 of 2000, took ")


def test_a_terminal_has_a_bar():
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    run(theirs)
    text = os.read(ours, 1 << 16)
    os.close(theirs), os.close(ours)
    assert b"\rcounting:" in text and b"number/s" in text and b"took" not in text


def test_lines_between_and_at_the_end(lines, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS", 0.0)  # after every item
    assert list(with_progress(iter("abc"), "spelling", 5, "letter", initial=2)) == list("abc")
    assert [line.split(", ")[0] for line in lines] == [
        "spelling: 3 of 5",
        "spelling: 4 of 5",
        "spelling: 5 of 5",
    ]
    assert lines[0].endswith(" left") and ", took " in lines[2]


def test_a_fast_loop_has_one_line(lines, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS", math.inf)
    assert list(with_progress(range(5000), "counting", 5000, "number")) == list(range(5000))
    assert len(lines) == 1


def test_a_loop_that_is_left_does_not_say_that_it_is_done(lines, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS", math.inf)
    for item in with_progress(range(5), "counting", 5, "number"):
        if item == 3:
            break
    assert lines == []


def test_every_bar_goes_this_way():
    """Another one would leave a line for each of its updates in a log file."""
    house = House(REPOSITORY)
    found = {
        name
        for name in house.modules
        if any(target.split(".")[0] == "tqdm" for target, _ in house.imports(name))
    }
    # the run's own bar, which the log lines of the steps replace, and what keeps lines off it
    of_a_run = {"vjepa_fast.training.monitoring.metrics", "vjepa_fast.training.loop"}
    assert found == {"vjepa_fast.progress"} | of_a_run


@pytest.mark.parametrize(
    ("short", "leave", "shown"), [(0, False, 1), (99, False, 0), (99, True, 1)]
)
def test_a_short_part_leaves_no_line(lines, monkeypatch, short, leave, shown):
    monkeypatch.setattr(progress, "SHORT", short)
    assert list(with_progress("abc", "spelling", 3, "letter", leave=leave)) == list("abc")
    assert len(lines) == shown
