"""File names that are not UTF-8, from index to report, also where stdout takes ASCII only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.helpers import videos
from tests.helpers.paths import REPOSITORY


def run(*arguments: str | bytes, encoding: str) -> str:
    """What a command prints."""
    done = subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"PYTHONIOENCODING": encoding, "OMP_NUM_THREADS": "1"},
        cwd=REPOSITORY,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.decode(encoding.partition(":")[0])


def test_names_that_are_not_utf8(small_config: Callable[..., dict], tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in "abcdefg":
        videos.write_numbered(folder, "mjpeg", 12, name)
    odd = os.fsencode(folder) + b"/caf\xe9 \xc3\xa9.avi"
    os.rename(folder / "a.avi", odd)
    with open(os.fsencode(folder) + b"/empty\xff.avi", "wb"):
        pass
    manifest = tmp_path / "m.csv"
    index = ("-m", "vjepa_fast.cli", "index", str(folder), "--output", str(manifest))
    assert f"rejected {folder}/empty\\udcff.avi: empty" in run(*index, encoding="utf-8:strict")

    status = os.stat(odd)
    with open(odd, "wb") as file:  # damaged, in a way that only decoding tells
        file.write(bytes(status.st_size))
    os.utime(odd, ns=(status.st_atime_ns, status.st_mtime_ns))
    data = {"manifests": [str(manifest)], "max_bad_fraction": 1.0, "backend": "pyav"}
    config = os.fsencode(tmp_path) + b"/\xff.json"
    with open(config, "w") as file:
        json.dump(small_config(data=data, optim={"steps": 2}), file)
    run("vjepa_fast/train.py", "--config", config, encoding="ascii:strict")
    bad = map(json.loads, (tmp_path / "run/bad_videos.jsonl").read_text().splitlines())
    assert {os.fsencode(row["path"]) for row in bad} == {odd}
    assert "\\udcff.json" in (tmp_path / "run/environment.json").read_text()
    run("-m", "vjepa_fast.cli", "report", str(tmp_path / "run"), encoding="ascii:strict")
    report = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    assert f"{folder}/caf\\udce9 é.avi" in report
