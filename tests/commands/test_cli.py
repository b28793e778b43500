"""The console script `vjepa-fast`: its commands, and its error when a package is missing."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import REPOSITORY
from vjepa_fast import cli
from vjepa_fast.data.manifest.files import read_manifest
from vjepa_fast.errors import UserError, exit_status


def test_demo_data_then_index_then_info(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    demo, manifest = tmp_path / "demo", tmp_path / "found.csv"
    counts = ["--clips", "5", "--test-clips", "2", "--workers", "1"]
    assert cli.main(["demo-data", "--output", str(demo), *counts]) == 0
    assert str(demo / "train.csv") in capsys.readouterr().out
    assert cli.main(["index", str(demo), "--output", str(manifest), "--workers", "1"]) == 0
    assert len(read_manifest(manifest)) == 7
    capsys.readouterr()
    assert cli.main(["info", "--config", str(REPOSITORY / "configs" / "vitl16.json")]) == 0
    assert "1568" in capsys.readouterr().out


@pytest.mark.parametrize("command", [[], ["probe"]])
def test_help_imports_nothing_heavy(command: list[str]) -> None:
    program = (
        "import sys\nfrom vjepa_fast.cli import main\ntry:\n    main(sys.argv[1:])\n"
        "except SystemExit:\n    print('modules:', *sys.modules)"
    )
    arguments = [sys.executable, "-c", program, *command, "--help"]
    done = subprocess.run(arguments, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    text, _, modules = done.stdout.partition("modules: ")
    assert "vjepa-fast" in text
    heavy = {"torch", "pydantic", "deepspeed", "av", "sklearn", "matplotlib", "pyarrow", "PIL"}
    assert "vjepa_fast.cli" in modules and not heavy & set(modules.split())


def test_without_the_training_packages_it_says_what_to_install() -> None:
    program = (
        "import sys; sys.modules['pydantic'] = None\n"
        "from vjepa_fast.cli import main\n"
        "sys.exit(main(['info', '--config', 'configs/tiny.json']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: found no module pydantic")
    assert "pip install" in done.stderr and "Traceback" not in done.stderr


def test_a_tilde_that_the_shell_leaves_is_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    made = cli.main(["demo-data", "--output=~/demo", "--clips", "1", "--test-clips", "1"])
    assert made == 0 and (tmp_path / "demo" / "train.csv").is_file()
    assert not (tmp_path / "~").exists()
    with pytest.raises(SystemExit):
        cli.main(["index", "$NO_WHERE/videos", "--output", "x.csv"])
    assert "directory: found $NO_WHERE/videos, whose variable $NO_WHERE is not set" in (
        capsys.readouterr().err
    )


def test_only_mistakes_become_sentences(capsys: pytest.CaptureFixture) -> None:
    def fails(error: Exception) -> int:
        raise error

    full = OSError(errno.ENOSPC, "No space left on device", "runs/x/shard")
    for mistake, sentence in (
        (UserError("a: found b"), "error: a: found b"),
        (full, "error: runs/x/shard: found No space left on device"),
    ):
        assert exit_status(lambda mistake=mistake: fails(mistake)) == 2
        assert capsys.readouterr().err.startswith(sentence)
    for bug in (
        KeyError("x"),
        OSError(errno.EIO, "Input/output error"),
        ModuleNotFoundError("No module named 'vjepa_fast.x'", name="vjepa_fast.x"),
    ):
        with pytest.raises(type(bug)):
            exit_status(lambda bug=bug: fails(bug))
    assert exit_status(lambda: 0) == 0


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_ctrl_c_is_one_sentence(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def interrupted(_: object) -> int:
        raise KeyboardInterrupt("after 2 of 4 files")

    monkeypatch.setattr(cli.COMMANDS[name], "add_arguments", lambda parser: None)
    monkeypatch.setattr(cli.COMMANDS[name], "run", interrupted)
    assert cli.main([name]) == 130
    then = "; run the same command to go on from there" if name in cli.RESUME else ""
    assert capsys.readouterr().err == f"interrupted after 2 of 4 files{then}\n"
