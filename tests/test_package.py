"""The distributed package: built, installed elsewhere, imported in a fresh process."""

import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import torch

from vjepa_fast.masks import MaskSampler, MultiBlock

ROOT = Path(__file__).resolve().parent.parent
PACKAGED = ("csrc", "configs", "vjepa_fast")
BUILT = ("*.so", "__pycache__")
SDIST = "import sys, setuptools.build_meta as backend; backend.build_sdist(sys.argv[1])"

# Run with -S, so that no .pth file brings the editable install back.
SAMPLE = """
import sys
installed, libraries, repository = sys.argv[1:]
sys.path[:0] = [installed, libraries]
assert repository not in sys.path
import vjepa_fast.masks as masks
assert masks.__file__.startswith(installed), masks.__file__
spec = masks.MultiBlock(num_blocks=2, spatial_scale=(0.7, 0.7))
print(masks.MaskSampler([spec], seed=4).sample(5, range(6)).context_tokens.tolist())
"""

IMPORTED = """
import sys
import vjepa_fast.masks
print(*sorted(sys.modules))
"""


def run(*command, cwd=None):
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    # From a copy: an egg-info left by an earlier build would lend its list of files.
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("sdist")
    for path in ROOT.iterdir():
        if path.name in PACKAGED and path.is_dir():
            shutil.copytree(path, source / path.name, ignore=shutil.ignore_patterns(*BUILT))
        elif path.is_file():
            shutil.copy(path, source)
    run("-c", SDIST, folder, cwd=source)
    (path,) = folder.glob("*.tar.gz")
    return path


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    """Built from the source distribution alone, so that a file it lacks is noticed."""
    folder = tmp_path_factory.mktemp("wheel")
    run(
        *("-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "--no-index"),
        *("-w", folder, sdist),
    )
    (path,) = folder.glob("*.whl")
    return path


def test_source_distribution_holds_what_a_build_needs(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"setup.py", "pyproject.toml", "constraints.txt", "LICENSE"}
    needed |= {f"csrc/{path.name}" for path in (ROOT / "csrc").iterdir()}
    assert needed <= names


def test_wheel_holds_every_module_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (scripts,) = (name for name in names if name.endswith("entry_points.txt"))
        assert "vjepa-fast = vjepa_fast.cli:main" in archive.read(scripts).decode()
    modules = {name for name in names if name.endswith(".py")}
    assert modules == {str(p.relative_to(ROOT)) for p in (ROOT / "vjepa_fast").rglob("*.py")}
    assert f"vjepa_fast/masks/_sampler{sysconfig.get_config_var('EXT_SUFFIX')}" in names
    assert {name.split("/")[0] for name in names if "dist-info" not in name} == {"vjepa_fast"}
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_wheel_installed_elsewhere_samples_masks(wheel, tmp_path):
    run(
        *("-m", "pip", "install", "-q", "--no-deps", "--no-index"),
        *("--target", tmp_path / "site", wheel),
    )
    libraries = Path(torch.__file__).parent.parent
    printed = run("-I", "-S", "-c", SAMPLE, tmp_path / "site", libraries, ROOT, cwd=tmp_path)
    spec = MultiBlock(num_blocks=2, spatial_scale=(0.7, 0.7))
    expected = MaskSampler([spec], seed=4).sample(5, range(6)).context_tokens.tolist()
    assert printed.strip() == str(expected)


def test_masks_import_nothing_else(tmp_path):
    modules = set(run("-I", "-c", IMPORTED, cwd=tmp_path).split())
    ours = {name for name in modules if name.split(".")[0] == "vjepa_fast"}
    assert "vjepa_fast.masks" in ours
    assert {name for name in ours if not (name + ".").startswith("vjepa_fast.masks.")} == {
        "vjepa_fast"
    }
    assert not modules & {"deepspeed", "nvidia.dali", "pydantic", "av", "xformers", "sklearn"}


def test_every_requirement_has_a_tested_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = project["build-system"]["requires"] + project["project"]["dependencies"]
    for extra in project["project"]["optional-dependencies"].values():
        wanted += extra
    pinned = [
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert {name_of(line) for line in wanted} <= {name_of(line) for line in pinned}
    # One flavour of torch would shut out the machines that need the other.
    assert not any("+" in line for line in pinned)
    assert [line for line in pinned if "==" not in line] == ["triton>=3.6,<3.10"]


def name_of(requirement):
    return re.match(r"[A-Za-z0-9._-]+", requirement).group().lower().replace("_", "-")
