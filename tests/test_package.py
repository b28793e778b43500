"""The distributed package: built, installed elsewhere, imported in a fresh process."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from importlib.metadata import distribution
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from vjepa_fast.masks import MaskSampler, MultiBlock

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
# The versions of Python that are tested, 3.x.
MINORS = [
    int(line.rpartition("3.")[2]) for line in PROJECT["classifiers"] if ":: Python :: 3." in line
]
COPIED = ("csrc", "configs", "tests", "vjepa_fast")
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

IMPORT_ALL = """
import pkgutil, sys
from importlib import import_module
import vjepa_fast
for module in pkgutil.walk_packages(vjepa_fast.__path__, "vjepa_fast."):
    if module.name.endswith(".modeling_vjepa"):
        continue  # copied into exports, never imported here; needs transformers
    assert import_module(module.name).__file__.startswith(sys.prefix), module.name
    print(module.name)
"""

IMPORTED = """
import sys
import vjepa_fast.masks
print(*sorted(sys.modules))
"""


def run(*command, cwd=None, program=sys.executable):
    done = subprocess.run(
        [program, *map(str, command)], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the repository: an earlier build's egg-info would lend its list of files."""
    folder = tmp_path_factory.mktemp("tree")
    for path in ROOT.iterdir():
        if path.name in COPIED and path.is_dir():
            shutil.copytree(path, folder / path.name, ignore=shutil.ignore_patterns(*BUILT))
        elif path.is_file():
            shutil.copy(path, folder)
    return folder


@pytest.fixture(scope="module")
def sdist(tree, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sdist")
    run("-c", SDIST, folder, cwd=tree)
    (path,) = folder.glob("*.tar.gz")
    return path


def build_wheel(source, folder):
    run(
        *("-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "--no-index"),
        *("-w", folder, source),
    )
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    """Built from the source distribution alone, so that a file it lacks is noticed."""
    return build_wheel(sdist, tmp_path_factory.mktemp("wheel"))


def contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_source_distribution_holds_what_a_build_needs(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"setup.py", "pyproject.toml", "constraints.txt", "LICENSE", "README.md"}
    for folder in ("csrc", "configs"):
        needed |= {f"{folder}/{path.name}" for path in (ROOT / folder).iterdir()}
    assert needed <= names
    assert not any(name.startswith("tests") for name in names)  # they need the whole repository


def test_wheel_holds_every_module_and_nothing_else(wheel):
    found = contents(wheel)
    (scripts,) = (name for name in found if name.endswith("entry_points.txt"))
    assert "vjepa-fast = vjepa_fast.cli:main" in found[scripts].decode()
    modules = {name for name in found if name.endswith(".py")}
    assert modules == {str(p.relative_to(ROOT)) for p in (ROOT / "vjepa_fast").rglob("*.py")}
    assert {name for name in found if "dist-info" not in name} - modules == {
        f"vjepa_fast/masks/_sampler{sysconfig.get_config_var('EXT_SUFFIX')}"
    }


def test_wheel_says_what_it_is_for(wheel):
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert wheel.name.endswith(f"-{python}-{python}-{platform}.whl")
    found = {name.partition(".dist-info/")[2]: data for name, data in contents(wheel).items()}
    assert found["licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()
    metadata = Parser().parsestr(found["METADATA"].decode())
    assert metadata["License-Expression"] == PROJECT["license"]
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload() == (ROOT / "README.md").read_text()
    assert metadata.get_all("Classifier") == PROJECT["classifiers"]
    assert SpecifierSet(metadata["Requires-Python"]) == SpecifierSet(PROJECT["requires-python"])
    wanted = set(map(Requirement, PROJECT["dependencies"]))
    for extra, lines in PROJECT["optional-dependencies"].items():
        wanted |= {Requirement(f"{line}; extra == '{extra}'") for line in lines}
    assert set(map(Requirement, metadata.get_all("Requires-Dist"))) == wanted


@pytest.mark.slow
def test_source_distribution_builds_the_wheel_that_the_repository_builds(tree, wheel, tmp_path):
    assert contents(build_wheel(tree, tmp_path)) == contents(wheel)


@pytest.mark.slow
def test_wheel_in_a_virtual_environment_finds_its_parts(wheel, tmp_path):
    run("-m", "venv", "--without-pip", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    run("-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel)
    # Folders named in a .pth file are searched, but their own .pth files aren't read: the editable
    # install stays out.
    site = Path(run("-c", "import site; print(site.getsitepackages()[0])", program=python).strip())
    (site / "libraries.pth").write_text(f"{Path(torch.__file__).parent.parent}\n")
    modules = set(run("-P", "-c", IMPORT_ALL, cwd=tmp_path, program=python).split())
    assert {"vjepa_fast.masks._sampler", "vjepa_fast.kernels.ema", "vjepa_fast.train"} <= modules

    command = python.with_name("vjepa-fast")
    run("demo-data", "--clips", 4, "--test-clips", 2, cwd=tmp_path, program=command)
    videos, config = tmp_path / "data" / "demo", ROOT / "configs" / "tiny.json"
    # `index` decodes in processes of its own: they must find the package as well.
    run("index", videos, "--output", "index.csv", cwd=tmp_path, program=command)
    assert len((tmp_path / "index.csv").read_text().splitlines()) == 7
    run("masks", "--config", config, cwd=tmp_path, program=command)


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


def test_every_package_that_is_installed_has_a_tested_version():
    """Also what only this version of Python or this flavour of torch needs."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = [Requirement(line) for line in lines if line and not line.startswith("#")]
    # One flavour of torch would shut out the machines that need the other.
    assert not any("+" in str(line.specifier) for line in pinned)
    assert [line.name for line in pinned if "==" not in str(line.specifier)] == ["triton"]

    wanted = PYPROJECT["build-system"]["requires"] + PROJECT["dependencies"]
    for extra in PROJECT["optional-dependencies"].values():
        wanted += extra
    needed = all_needed([Requirement(line) for line in wanted])
    fixed = {canonicalize_name(line.name) for line in pinned}
    # torch names the exact versions of CUDA's libraries.
    fixed |= {name for name, line in needed if str(line.specifier).startswith("==")}
    assert len(needed) > 50
    assert {name for name, _ in needed} - fixed == set()


def all_needed(requirements):
    """What these need on this machine, and what that needs: pairs of name and requirement."""
    found, left = set(), list(requirements)
    while left:
        line = left.pop()
        if (canonicalize_name(line.name), line) in found:
            continue
        found.add((canonicalize_name(line.name), line))
        for text in distribution(line.name).requires or ():
            needed = Requirement(text)
            extras = [{"extra": extra} for extra in line.extras or {""}]
            if needed.marker is None or any(map(needed.marker.evaluate, extras)):
                left.append(needed)
    return found


def test_all_name_the_same_versions_of_python():
    """The classifiers are the versions that are tested; ruff reads `requires-python`."""
    first, last = MINORS[0], MINORS[-1]
    assert first <= sys.version_info.minor <= last
    assert PROJECT["requires-python"] == f">=3.{first},<3.{last + 1}"
    assert "target-version" not in PYPROJECT["tool"]["ruff"]
    for name in ("README.md", "Makefile", "constraints.txt"):
        named = re.findall(r"3\.(\d+) to 3\.(\d+)", (ROOT / name).read_text())
        assert set(named) == {(str(first), str(last))}, name


# How a `make` that runs the tests hands its arguments to every `make` below it.
INHERITED = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "PYTHON"}


@pytest.fixture(autouse=True)
def _as_under_make(monkeypatch):
    """As under `make PYTHON=… test`."""
    monkeypatch.setenv("MAKEFLAGS", " -- PYTHON=no-such-python")
    monkeypatch.setenv("PYTHON", "no-such-python")


def make(tree, *arguments):
    own = {name: value for name, value in os.environ.items() if name not in INHERITED}
    return subprocess.run(
        ["make", *arguments],
        cwd=tree,
        env=own | {"CXX": "no-compiler"},
        capture_output=True,
        text=True,
        check=False,
    )


def python_3(minor, folder):
    """A command that runs this Python under another version's number."""
    version = f"sys.version_info = (3, {minor}, 0, 'final', 0); sys.version = '3.{minor}.0'"
    (folder / "sitecustomize.py").write_text(f"import sys; {version}")
    return f"PYTHONPATH={folder} {sys.executable}"


@pytest.mark.parametrize("minor", [MINORS[0] - 1, MINORS[0], MINORS[-1], MINORS[-1] + 1])
def test_make_refuses_other_versions_of_python(tree, tmp_path, minor):
    done = make(tree, "install", f"PYTHON={python_3(minor, tmp_path)}")
    refused = f"Python 3.{minor}, expected 3.{MINORS[0]} to 3.{MINORS[-1]}"
    expected = "no C++ compiler" if minor in MINORS else refused
    assert f"error: found {expected}" in done.stderr
    assert done.returncode != 0


def test_make_keeps_the_python_of_the_virtual_environment_until_another_is_named(tree, tmp_path):
    copy = with_environment(tree, tmp_path)
    named = tmp_path / "its-python"
    named.symlink_to(sys.executable)
    settings = copy / ".venv" / "pyvenv.cfg"
    settings.write_text(
        re.sub("(?m)^executable = .*", f"executable = {named}", settings.read_text())
    )
    anew = f"{named} -m venv --clear"
    assert anew in make(copy, "-n", "train").stdout  # it isn't finished

    (copy / ".venv" / ".installed").touch()
    for same in ([], [f"PYTHON={sys.executable}"]):
        done = make(copy, "-n", "train", *same)
        assert "train.py" in done.stdout
        assert "venv --clear" not in done.stdout
    other = python_3(MINORS[0] - 1, tmp_path)
    assert f"{other} -m venv --clear" in make(copy, "-n", "train", f"PYTHON={other}").stdout


def with_environment(tree, tmp_path):
    """A copy of the repository with a `.venv` which holds no more than an empty pip."""
    copy = shutil.copytree(tree, tmp_path / "copy")
    run("-m", "venv", "--without-pip", copy / ".venv")
    (site,) = copy.glob(".venv/lib/python*/site-packages")
    (site / "pip.py").touch()
    return copy


def test_make_renews_an_environment_whose_python_was_replaced(tree, tmp_path):
    """Another Python in its place finds none of the packages, as after an upgrade of Debian."""
    copy = with_environment(tree, tmp_path)
    (copy / ".venv" / ".installed").touch()
    (copy / ".venv" / ".installed-test").touch()
    assert "venv --clear" not in make(copy, "-n", "lint").stdout
    (site,) = copy.glob(".venv/lib/python*/site-packages")
    site.parent.rename(site.parents[1] / "python3.9")
    planned = make(copy, "-n", "lint").stdout
    assert "venv --clear" in planned
    assert "'.[train]'" in planned and ".installed-test.txt" in planned


def test_make_train_installs_nothing_for_tests(tree, tmp_path):
    copy = with_environment(tree, tmp_path)
    of_tests = "-r .venv/.installed-test.txt"
    planned = make(copy, "-n", "train").stdout
    assert "'.[train]'" in planned and of_tests not in planned
    for target in ("install", "test", "test-all", "lint", "format", "bench", "gpu-check"):
        planned = make(copy, "-n", target).stdout
        assert 0 < planned.index("'.[train]'") < planned.index(of_tests), target
    (copy / ".venv" / ".installed").touch()
    planned = make(copy, "-n", "test").stdout
    assert "'.[train]'" not in planned and of_tests in planned
