"""Two commands that write to the same place: the second one is refused, and told by whom."""

from __future__ import annotations

import logging
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import videos
from vjepa_fast.errors import UserError
from vjepa_fast.locks import sole_writer

HOLD = """
import sys, time
from pathlib import Path
from vjepa_fast.locks import sole_writer
with sole_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("name", ["", "train.csv"])
def test_the_holder_is_named_and_a_killed_one_is_in_nobodys_way(tmp_path: Path, name: str) -> None:
    place = tmp_path / name
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(place)], stdout=subprocess.PIPE, text=True
    ) as holder:
        try:
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(UserError) as refused, sole_writer(place, "go elsewhere"):
                pass
        finally:
            holder.send_signal(signal.SIGKILL)
    begin = f"{place}: found that another process writes to it (host {platform.node()}, process "
    assert str(refused.value).startswith(f"{begin}{holder.pid}, since 20")
    assert str(refused.value).endswith("expected one at a time; wait for its end, or go elsewhere")
    with sole_writer(place):
        (lock,) = tmp_path.iterdir()
        assert f"process {os.getpid()}," in lock.read_text()
    assert lock.read_text() == "" and lock.name.startswith(".")


def test_who_waits_says_for_whom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a process of a text list would hang without a word."""
    listed, said = tmp_path / "list.txt", []

    class EndTheHolder(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())
            holder.kill()

    log = logging.getLogger("vjepa_fast")
    monkeypatch.setattr(log, "handlers", [EndTheHolder()])
    monkeypatch.setattr(log, "level", logging.INFO)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(listed)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        with sole_writer(listed, wait=True):
            owner = f"(host {platform.node()}, process {holder.pid}, since 20"
    (sentence,) = said
    assert sentence.startswith(f"{listed}: waiting for another process that works on it {owner}")


@pytest.mark.parametrize("command", ["index", "transcode", "demo-data"])
def test_commands_that_write_to_one_place_are_refused(tmp_path: Path, command: str) -> None:
    """Their journal, unfinished copies and manifest would otherwise be of both."""
    manifest, copies = tmp_path / "train.csv", tmp_path / "copies"
    videos.write_numbered(tmp_path, "mjpeg", 5)
    copies.mkdir()
    arguments, place = {
        "index": ([str(tmp_path), "--output", str(manifest)], manifest),
        "transcode": ([str(manifest), "--output", str(copies)], copies),
        "demo-data": (["--clips", "1", "--test-clips", "1", "--output", str(copies)], copies),
    }[command]

    def run(name: str, *arguments: str) -> subprocess.CompletedProcess:
        whole = [sys.executable, "-m", "vjepa_fast.cli", name, *arguments]
        return subprocess.run(whole, capture_output=True, text=True)

    if command == "transcode":
        assert run("index", str(tmp_path), "--output", str(manifest)).returncode == 0
    with sole_writer(place):
        refused = run(command, *arguments)
    assert refused.returncode == 2
    assert f"error: {place}: found that another process writes to it (host " in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not list(copies.glob("*.*v"))
    again = run(command, *arguments)
    assert again.returncode == 0, again.stderr
