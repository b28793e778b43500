"""Layers point one way, run as a script nobody is shadowed, files stay small and portable."""

import ast
import os
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "vjepa_fast"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

# Whom each room may import; every room may import itself. The longest match counts, and a module of
# no room is a failure, so that a new file must be given its place.
LOWER = {"kernels", "masks", "models", "errors"}
TRAINING = {*LOWER, "config", "data", "weights"}
ALLOWED = {
    "": set(),  # vjepa_fast/__init__.py
    "errors": set(),
    "kernels": set(),
    "masks": set(),
    "models": {"kernels"},
    "data": {"masks", "errors"},
    "weights": {"errors"},
    "config": {"masks", "models", "errors"},
    "training": {*TRAINING, ""},
    "evaluation": {*TRAINING, "training"},
    "commands": {*TRAINING, "training", "evaluation"},
    "train": {*TRAINING, "training"},
    "cli": {*TRAINING, "training", "evaluation", "commands", "train", ""},
}
# What the three parts that others use on their own may import from elsewhere.
LIBRARIES = {
    "kernels": {"torch", "triton", "numpy"},
    "masks": {"torch", "numpy"},
    "models": {"torch", "numpy", "xformers"},  # xformers inside a function, if it is there
}


def within(name, part):
    return name == part or name.startswith(f"{part}.")


def imports(name):
    """Every module that a file imports, anywhere in it, with whether that happens only later: in a
    function, or for type checkers."""
    path, found = MODULES[name], []
    tree = ast.parse(path.read_text(), str(path))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    later = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, functions)
        or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        for inner in ast.walk(node)
    }
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in later) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*base, *filter(None, [node.module])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                # `from package import module`; from its own package also the compiled _sampler
                own = "." in base and base != name and within(name, base)
                module = full in MODULES or own
                found.append((full if module else base, id(node) in later))
    return found


def ours(name):
    """Imports of our own, without the package's name in front."""
    return {
        target.removeprefix("vjepa_fast").removeprefix(".")
        for target, _ in imports(name)
        if within(target, "vjepa_fast")
    }


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_one_way(name):
    own = name.removeprefix("vjepa_fast").removeprefix(".")
    parts = [part for part in ALLOWED if within(own, part)]
    assert parts, f"{name} belongs to no part of the design; give it a line in ALLOWED"
    part = max(parts, key=len)
    wrong = {
        target
        for target in ours(name)
        if not any(within(target, p) for p in {*ALLOWED[part], part})
    }
    assert not wrong, f"{name} may not import {wrong}"


@pytest.mark.parametrize("name", MODULES)
def test_nothing_of_ours_imports_benchmarks_or_tests(name):
    tops = {target.split(".")[0] for target, _ in imports(name)}
    assert not tops & {"bench", "tests", "setup", "conftest"}
    assert not tops & {path.stem for path in (ROOT / "tests").glob("*.py")}
    assert not tops & ({path.stem for path in PACKAGE.iterdir()} - {"__init__", "__pycache__"})


@pytest.mark.parametrize("part", LIBRARIES)
def test_libraries_of_the_parts_that_others_use(part):
    found = {
        target.split(".")[0]
        for name in MODULES
        if within(name, f"vjepa_fast.{part}")
        for target, _ in imports(name)
    }
    assert found - sys.stdlib_module_names - {"vjepa_fast"} <= LIBRARIES[part]


def test_no_module_imports_itself_in_a_circle():
    graph = {
        name: {target for target, later in imports(name) if not later and target in MODULES}
        for name in MODULES
    }
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError
    assert order.index("vjepa_fast.errors") < order.index("vjepa_fast.cli")


def test_imports_are_seen():
    """The checks above look at what is there: lazy, relative and for type checkers."""
    assert "config.schema" in ours("vjepa_fast.config.checks")
    assert ("vjepa_fast.config", True) in imports("vjepa_fast.train")
    assert ("vjepa_fast.masks", False) in imports("vjepa_fast.config.masks")
    assert "evaluation.probe" in ours("vjepa_fast.commands.probe")
    assert "kernels.gather_backward" in ours("vjepa_fast.kernels.gather")
    assert "masks" in ours("vjepa_fast.config.masks")


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


SOURCES = [*MODULES.values(), *sorted((ROOT / "csrc").iterdir())]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_short(path):
    assert len(path.read_text().splitlines()) <= 400


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
