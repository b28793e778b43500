"""Measures the layout of the package: files in a folder, imports between rooms, import closures.

Run as a program it prints the figures of any checkout: python tests/helpers/house.py [ROOT].
tests/test_architecture.py asserts on the same functions.

A *room* is a folder or file directly in vjepa_fast/. An *arrow* is an import of one room by
another, anywhere in a file, also inside a function or for type checking.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

PACKAGE = "vjepa_fast"
HEAVY = ("deepspeed", "nvidia.dali", "av", "sklearn", "matplotlib", "pydantic", "torch", "triton")
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def within(name: str, part: str) -> bool:
    """Whether a dotted name is `part` or inside it."""
    return name == part or name.startswith(f"{part}.")


class House:
    """The modules of a checkout.

    Args:
        root: folder that holds vjepa_fast/.

    Attributes:
        modules: dotted name → file.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.modules = {
            ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
            for path in sorted((root / PACKAGE).rglob("*.py"))
        }

    def imports(self, name: str) -> list[tuple[str, bool]]:
        """Every module that a file imports, with whether that is deferred: inside a function, or
        for type checkers only."""
        path, found = self.modules[name], []
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        deferred = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, FUNCTIONS)
            or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
            for inner in ast.walk(node)
        }
        package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found += [(alias.name, id(node) in deferred) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = package[: len(package) - node.level + 1] if node.level else []
                base = ".".join([*base, *filter(None, [node.module])])
                for alias in node.names:
                    full = f"{base}.{alias.name}"
                    # `from package import module`; from its own package also the compiled _sampler
                    own = "." in base and base != name and within(name, base)
                    is_module = full in self.modules or own
                    found.append((full if is_module else base, id(node) in deferred))
        return found

    def ours(self, name: str) -> set[str]:
        """The package's own modules that a module imports, without the package's name in front."""
        return {
            target.removeprefix(PACKAGE).removeprefix(".")
            for target, _ in self.imports(name)
            if within(target, PACKAGE)
        }

    def graph(self, deferred: bool) -> dict[str, set[str]]:
        """Module → modules of the package that it imports, with or without deferred imports."""
        return {
            name: {
                target
                for target, later in self.imports(name)
                if target in self.modules and target != name and (deferred or not later)
            }
            for name in self.modules
        }

    def circle(self, deferred: bool) -> list[str]:
        """A chain of modules that import each other; empty if there is none."""
        try:
            list(TopologicalSorter(self.graph(deferred)).static_order())
        except CycleError as error:
            return error.args[1]
        return []

    def arrows(self) -> dict[str, set[str]]:
        """Room → rooms that it imports."""
        found: dict[str, set[str]] = {}
        for name in self.modules:
            room = self.room(name)
            found.setdefault(room, set())
            found[room] |= {self.room(f"{PACKAGE}.{o}") for o in self.ours(name) if o} - {room}
        return found

    @staticmethod
    def room(name: str) -> str:
        """The room of a module."""
        return next(iter(name.split(".")[1:]), "__init__")

    def mutual(self) -> list[tuple[str, str]]:
        """Pairs of rooms that import each other."""
        arrows = self.arrows()
        return [(a, b) for a in arrows for b in arrows[a] if a < b and a in arrows.get(b, ())]

    def floors(self) -> int:
        """Rooms on the longest way down along the arrows; mutual arrows are left out."""
        arrows, mutual = self.arrows(), self.mutual()
        down = {
            a: {b for b in arrows[a] if b in arrows and tuple(sorted((a, b))) not in mutual}
            for a in arrows
        }
        height: dict[str, int] = {}
        for room in TopologicalSorter(down).static_order():
            height[room] = 1 + max((height[b] for b in down[room]), default=0)
        return max(height.values())

    def closure(self, name: str) -> set[str]:
        """Top-level names of what importing a module imports, by reading the files: libraries, and
        the package's own modules."""
        graph, found, todo = self.graph(deferred=False), set(), [name]
        while todo:
            module = todo.pop()
            if module in found:
                continue
            found.add(module)
            parents = [module.rpartition(".")[0]] if "." in module else []
            todo += [*graph[module], *(p for p in parents if p in self.modules)]
        libraries = {
            target.split(".")[0]
            for module in found
            for target, later in self.imports(module)
            if not later and not within(target, PACKAGE)
        }
        return found | libraries


def files_per_folder(root: Path, top: str) -> Counter[str]:
    """Python files of each folder below `top`, `__init__.py` not counted."""
    return Counter(
        str(path.parent.relative_to(root))
        for path in (root / top).rglob("*.py")
        if path.name != "__init__.py" and "__pycache__" not in path.parts
    )


def count_lines(root: Path, top: str) -> int:
    """Lines of the Python and C++ files below `top`."""
    files = [p for p in (root / top).rglob("*") if p.suffix in (".py", ".cpp", ".h")]
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files)


def loaded(root: Path, code: str) -> list[str]:
    """Modules in a fresh process that ran `code`."""
    program = f"import sys\nsys.path.insert(0, {str(root)!r})\n{code}\nprint(*sys.modules)"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split()


def import_row(root: Path, code: str) -> str:
    """How many modules a fresh process loads for `code`, ours of them, and the heavy libraries."""
    names = loaded(root, code)
    ours = sum(within(name, PACKAGE) for name in names)
    heavy = [library for library in HEAVY if library in names]
    return f"{len(names)} modules, {ours} of ours; {', '.join(heavy) or 'no heavy library'}"


PROBE_HELP = """
import contextlib, io
from vjepa_fast.cli import main
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
    main(["probe", "--help"])
"""


def main() -> None:
    """Print the figures of a checkout."""
    root = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[2]).resolve()
    house = House(root)
    arrows = house.arrows()
    print(f"rooms: {len(arrows)}; floors: {house.floors()}")
    print(f"arrows between rooms: {sum(map(len, arrows.values()))}")
    print(f"rooms that import each other: {house.mutual() or 'none'}")
    print(f"circle of modules: {' -> '.join(house.circle(deferred=True)) or 'none'}")
    for top in (PACKAGE, "bench", "tests"):
        most = files_per_folder(root, top).most_common(3)
        print(f"most files in a folder of {top}: {', '.join(f'{f} {n}' for f, n in most)}")
    for top in (PACKAGE, "csrc", "bench", "tests"):
        print(f"lines in {top}: {count_lines(root, top)}")
    old = f"{PACKAGE}.training.checkpoint.format" not in house.modules
    reader = f"{PACKAGE}.training.checkpoint" + ("" if old else ".format")
    print(f"vjepa-fast probe --help: {import_row(root, PROBE_HELP)}")
    print(f"reading a checkpoint: {import_row(root, f'import {reader}')}")
    print(f"probing: {import_row(root, f'import {PACKAGE}.evaluation.probe')}")
    print(f"reading a config: {import_row(root, f'import {PACKAGE}.config')}")
    print(f"training: {import_row(root, f'import {PACKAGE}.training.loop')}")


if __name__ == "__main__":
    main()
