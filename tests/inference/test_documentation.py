"""The Python lines of docs/features.md run as they are; the README has the first of them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import videos
from tests.helpers.paths import REPOSITORY
from tests.inference.folders import features
from vjepa_fast import cli

PAGE = (REPOSITORY / "docs" / "features.md").read_text(encoding="utf-8")
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def blocks(text: str) -> list[str]:
    """The Python code of a page about features."""
    found = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return [code for code in found if "load_encoder" in code or "index.csv" in code]


def run(code: str, folder: Path) -> str:
    """What a program prints that is run in a folder."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_lines_of_the_page_run(runs: dict, demo: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "v2_tiny").symlink_to(runs[2])
    videos.write_video(
        tmp_path / "video.mp4", [videos.numbered(i, 32, 44) for i in range(30)], "h264"
    )
    call, read = blocks(PAGE)
    assert blocks(README) == [call]
    printed = run(f"{call}\nprint(*tokens.shape, *grid, *vectors.shape, tokens.dtype)", tmp_path)
    assert printed == "1 32 24 2 4 4 1 24 torch.float32\n"
    assert features(demo / "test.csv", runs[2], tmp_path / "features" / "mine") == 0
    assert run(f"{read}\nprint(len(features), *features[3].shape)", tmp_path) == "16 32 24\n"


def test_the_commands_of_the_page_parse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """They name options that exist; their files do not exist here."""
    monkeypatch.chdir(tmp_path)  # after `make train`, the repository has this run
    lines = re.findall(r"vjepa-fast (features .*)", PAGE)
    assert len(lines) >= 8
    for line in lines:
        words = line.partition("#")[0].replace("$SLURM_ARRAY_TASK_ID", "3").split()
        assert cli.main(words) == 2, line
        assert "runs/v2_tiny: found no such file or folder" in capsys.readouterr().err
