"""The layout: imports point one way, rooms load only what they need, folders and files stay small.

`python tests/helpers/house.py` prints the figures that these tests check.
"""

import os
import subprocess
import sys

import pytest

from tests.helpers.house import House, files_per_folder, within
from tests.helpers.paths import REPOSITORY

HOUSE = House(REPOSITORY)
MODULES = HOUSE.modules
ROOT = REPOSITORY
PACKAGE = ROOT / "vjepa_fast"
FILES_PER_FOLDER = 9
LINES_PER_FILE = 400

# Whom each room may import; every room may import itself. A name stands for everything below it,
# and the longest one counts. A module of no room fails, so that a new file must be given its place.
PLANS = {"data.plan", "data.decode", "data.loader", "data.open_manifest"}
UPPER = {"config", "data.manifest", "errors", "models", "progress", "weights"}
ALLOWED = {
    "": set(),  # vjepa_fast/__init__.py
    "closed_form": set(),
    "errors": set(),
    "locks": {"errors"},
    "paths": set(),
    "pictures": set(),
    "progress": set(),
    "kernels": set(),
    "masks": set(),
    "models": {"kernels"},
    "config": {"errors", "masks", "models", "paths"},
    "weights": {"errors", "models"},
    "data": set(),  # each file at its top has a line of its own below
    "data.ffmpeg": set(),
    "data.workers": {"errors"},
    "data.manifest": {"errors", "locks"},
    "data.plan": {"data.manifest", "errors", "masks"},
    "data.frames": {"data.ffmpeg", "data.manifest"},
    "data.decode": {
        "data.ffmpeg",
        "data.frames",
        "data.manifest",
        "data.plan",
        "data.workers",
        "errors",
    },
    "data.bad_clips": {"data.decode", "data.plan", "errors"},
    "data.loader": {"data.bad_clips", "data.decode", "data.plan"},
    "data.prepare": {
        "data.decode",
        "data.ffmpeg",
        "data.frames",
        "data.manifest",
        "data.workers",
        "errors",
        "locks",
        "paths",
        "progress",
    },
    "data.open_manifest": {"data.manifest", "data.prepare"},
    "training.distributed": {"errors", "locks"},
    "training.timers": set(),
    "training.schedules": {"config"},
    "training.recipe": {"config", "errors"},
    "training.zero": {"config", "errors", "training.checkpoint.format"},
    "training.teacher": {"kernels", "models", "training.zero"},
    "training.checkpoint.format": {"errors"},
    "training.checkpoint": {
        "config",
        "errors",
        "training.distributed",
        "training.recipe",
        "training.engine_trainer",
        "training.trainer",
        "training.zero",
    },
    "training.monitoring": {
        "",
        "closed_form",
        "config",
        "data.manifest",
        "data.workers",
        "errors",
        "masks",
        "pictures",
        "progress",
        "training.batches",
        "training.checkpoint.format",
        "training.distributed",
        "training.engine_trainer",
        "training.recipe",
        "training.timers",
        "training.trainer",
        "training.zero",
        *PLANS,
    },
    "training": {*PLANS, *UPPER, "data.workers", "masks"},
    "inference": {
        "data.bad_clips",
        "data.ffmpeg",
        "data.prepare",
        "kernels",
        "locks",
        "pictures",
        "training.checkpoint.format",
        "training.distributed",
        *PLANS,
        *UPPER,
    },
    "exchange": {
        "",
        "training.batches",
        "config",
        "errors",
        "evaluation",
        "inference",
        "locks",
        "models",
        "training.checkpoint.format",
        "weights",
    },
    "evaluation": {
        "closed_form",
        "data.bad_clips",
        "inference",
        "kernels",
        "locks",
        "masks",
        "training.checkpoint.format",
        "training.distributed",
        *PLANS,
        *UPPER,
    },
    "finetuning": {*PLANS, *UPPER, "evaluation", "inference", "kernels", "masks", "training"},
    "studies": {
        *UPPER,
        "evaluation",
        "training.batches",
        "training.monitoring",
        "training.recipe",
    },
    "commands": {
        "data.prepare",
        "evaluation",
        "exchange",
        "finetuning",
        "inference",
        "masks",
        "training.batches",
        "training.distributed",
        "training.recipe",
        "training.monitoring",
        "training.timers",
        "paths",
        "studies",
        *PLANS,
        *UPPER,
    },
    "train": {
        "commands.terminal",
        "config",
        "errors",
        "training.distributed",
        "training.loop",
        "training.recipe",
    },
    "cli": {"", "commands", "errors", "train"},
}
# What the parts that others use on their own may import from elsewhere.
LIBRARIES = {
    "kernels": {"torch", "triton", "numpy"},
    "masks": {"torch", "numpy"},
    "models": {"torch", "numpy", "xformers"},  # xformers inside a function, if it is there
}
# What importing a part must not load, since it has no need for it.
NOT_LOADED = {
    "vjepa_fast.cli": {"torch", "pydantic", "av", "sklearn", "matplotlib", "deepspeed"},
    "vjepa_fast.config": {"deepspeed", "triton", "vjepa_fast.training", "vjepa_fast.data"},
    "vjepa_fast.training.checkpoint.format": {"deepspeed", "pydantic", "vjepa_fast.training.zero"},
    "vjepa_fast.evaluation.probe": {"deepspeed", "vjepa_fast.training.trainer"},
    "vjepa_fast.inference": {"deepspeed", "transformers", "vjepa_fast.training.trainer"},
    "vjepa_fast.training.loop": {"sklearn", "vjepa_fast.commands", "vjepa_fast.evaluation"},
}


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_one_way(name):
    own = name.removeprefix("vjepa_fast").removeprefix(".")
    parts = [part for part in ALLOWED if within(own, part)]
    assert parts, f"{name} belongs to no part of the design; give it a line in ALLOWED"
    part = max(parts, key=len)
    wrong = {
        target
        for target in HOUSE.ours(name)
        if not any(within(target, p) for p in {*ALLOWED[part], part})
    }
    assert not wrong, f"{name} may not import {wrong}"


def test_rooms_do_not_import_each_other():
    assert HOUSE.mutual() == []


def test_no_module_imports_itself_in_a_circle():
    """Not even inside functions or for type checkers."""
    assert HOUSE.circle(deferred=True) == []


@pytest.mark.parametrize("name", MODULES)
def test_nothing_of_ours_imports_benchmarks_or_tests(name):
    tops = {target.split(".")[0] for target, _ in HOUSE.imports(name)}
    assert not tops & {"bench", "tests", "setup", "conftest"}
    assert not tops & ({path.stem for path in PACKAGE.iterdir()} - {"__init__", "__pycache__"})


@pytest.mark.parametrize("part", LIBRARIES)
def test_libraries_of_the_parts_that_others_use(part):
    found = {
        target.split(".")[0]
        for name in MODULES
        if within(name, f"vjepa_fast.{part}")
        for target, _ in HOUSE.imports(name)
    }
    assert found - sys.stdlib_module_names - {"vjepa_fast"} <= LIBRARIES[part]


def test_imports_are_seen():
    """The checks above look at what is there: lazy, plain, and of modules of a package."""
    assert "config.schema" in HOUSE.ours("vjepa_fast.config.checks")
    assert ("vjepa_fast.masks", False) in HOUSE.imports("vjepa_fast.config.masks")
    assert ("vjepa_fast.evaluation.probe", True) in HOUSE.imports(
        "vjepa_fast.commands.evaluation.probe"
    )
    assert "kernels.gather_backward" in HOUSE.ours("vjepa_fast.kernels.gather")
    assert HOUSE.arrows()["models"] == {"kernels"}


@pytest.mark.parametrize(
    "source", ["def f():\n    import vjepa_fast.a.b\n", "import vjepa_fast.a\n"]
)
def test_a_circle_is_seen(source, tmp_path):
    """The checks above can fail."""
    for name, text in {"a/__init__": "", "a/b": "import vjepa_fast.c\n", "c": source}.items():
        path = tmp_path / "vjepa_fast" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    house = House(tmp_path)
    assert house.mutual() == [("a", "c")]
    assert bool(house.circle(deferred=True)) == ("a.b" in source)
    assert house.circle(deferred=False) == []


def fresh(*command, cwd, **environment):
    """Run python in a new process; what it printed."""
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


HEAVY = {"deepspeed", "nvidia.dali", "pydantic", "av", "xformers", "sklearn", "matplotlib"}


@pytest.mark.parametrize(
    ("part", "companions"), [("kernels", set()), ("models", {"kernels"})], ids=["kernels", "models"]
)
def test_a_fresh_import_brings_nothing_else(part, companions, tmp_path):
    names = [name for name in MODULES if within(name, f"vjepa_fast.{part}")]
    program = "\n".join(["import sys", *(f"import {n}" for n in names), "print(*sys.modules)"])
    modules = set(fresh("-I", "-c", program, cwd=tmp_path).split())
    assert set(names) <= modules
    assert not modules & HEAVY
    found = {name.split(".")[1] for name in modules if name.startswith("vjepa_fast.")}
    assert found == {part} | companions


@pytest.mark.parametrize("name", NOT_LOADED)
def test_importing_a_part_loads_only_what_it_needs(name, tmp_path):
    program = f"import sys\nimport {name}\nprint(*sys.modules)"
    modules = set(fresh("-c", program, cwd=tmp_path, PYTHONPATH=str(ROOT)).split())
    assert name in modules
    assert not modules & NOT_LOADED[name]


# Runs in the script's own process after the script is done.
AFTERWARDS = """
import atexit, importlib.util, sys
NAMES = "cli commands config data errors evaluation kernels masks models train training".split()
def report():
    specs = {name: importlib.util.find_spec(name) for name in NAMES}
    origins = {n: s.origin or list(s.submodule_search_locations) for n, s in specs.items() if s}
    print("path:", sys.path[0])
    print("ours:", *sorted(name for name, origin in origins.items() if ROOT in str(origin)))
atexit.register(report)
"""


def run_script(script, tmp_path, *arguments):
    """Run a file from elsewhere: what it printed, its path's first entry, what it shadows."""
    (tmp_path / "sitecustomize.py").write_text(f"ROOT = {str(PACKAGE)!r}\n{AFTERWARDS}")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    printed = fresh(script, *arguments, cwd=elsewhere, PYTHONPATH=str(tmp_path))
    *output, path, names = printed.splitlines()
    return "\n".join(output), path.removeprefix("path: "), names.removeprefix("ours:").split()


def test_train_as_a_script_shadows_nobody(tmp_path):
    help_text, first, found = run_script(PACKAGE / "train.py", tmp_path, "--help")
    assert "--config" in help_text and "--local_rank" in help_text
    assert first == str(ROOT)
    assert found == []


def test_a_script_without_that_care_would(tmp_path):
    """The check above can fail: any other file of the package, run as a script, shadows these."""
    _, first, found = run_script(PACKAGE / "errors.py", tmp_path)
    assert first == str(PACKAGE)
    assert {"data", "models", "kernels", "masks", "config", "train"} <= set(found)


def test_train_as_a_script_needs_no_installed_package(tmp_path):
    """The repository's root comes first, so that it is this checkout that runs."""
    program = (
        "import runpy, sys; script = sys.argv[1]; sys.argv = [script, '--help'];"
        "sys.path.insert(0, script.rpartition('/')[0]);"
        "sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f).lower()];"
        "runpy.run_path(script, run_name='__main__')"
    )
    assert "--config" in fresh("-c", program, PACKAGE / "train.py", cwd=tmp_path)


@pytest.mark.parametrize("top", ["vjepa_fast", "bench", "tests"])
def test_folders_hold_few_files(top):
    crowded = {f: n for f, n in files_per_folder(ROOT, top).items() if n > FILES_PER_FOLDER}
    assert not crowded


FOLDERS = [path.parent for path in MODULES.values() if path.name == "__init__.py"]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_folder_says_what_it_answers(folder):
    text = (folder / "__init__.py").read_text(encoding="utf-8")
    assert text.startswith('"""')
    assert folder == PACKAGE or len(text.partition('"""')[2].partition('"""')[0].splitlines()) >= 3


SOURCES = [
    path
    for top in ("vjepa_fast", "csrc", "bench", "tests")
    for path in sorted((ROOT / top).rglob("*"))
    if path.suffix in (".py", ".cpp", ".h")
]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LINES_PER_FILE


def test_the_algorithms_in_cpp_know_neither_python_nor_torch():
    for path in (ROOT / "csrc").iterdir():
        includes = [line for line in path.read_text().splitlines() if line.startswith("#include")]
        assert not [line for line in includes if "torch" in line or "ATen" in line]
        if path.name != "bindings.cpp":
            assert not [line for line in includes if "pybind11" in line or "Python.h" in line]


def test_no_tracked_file_names_a_place_outside_the_repository():
    listed = ["git", "-c", "safe.directory=*", "ls-files", "-z"]
    done = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True)
    paths = [ROOT / name for name in done.stdout.split("\0") if name]
    assert len(paths) > 50
    foreign = [b"/" + b"work/", b".." + b"/shared", b"/" + b"home/"]
    guilty = {
        (str(path.relative_to(ROOT)), place.decode())
        for path in paths
        if path.is_file()
        for place in foreign
        if place in path.read_bytes()
    }
    assert not guilty
