"""Compiles the Triton kernels ahead of time, without a GPU, and inspects the compiled code.

Run as a program, in a process without TRITON_INTERPRET: it prints JSON, and with --record writes
the figures to tests/golden/kernel_resources.json. A variant is a call of an op's own launch code
with tensors on the meta device, so it compiles exactly what a launch would compile: Triton itself
derives types, specializations and options. tests/kernels/variants/<op>.py has, for each op,
    VARIANTS: name of a variant → call,
    WIDE: name of a variant → its kernel that must move 16 bytes at a time,
    QUICK: names of a few variants that `make test` compiles, the others being slow tests.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import run

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent)]

GOLDEN = TESTS / "golden" / "kernel_resources.json"
ARCHITECTURES = (80, 90, 100)
WIDE_ACCESS = {"loads": r"ld\.global\S*\.v4\.(b|u|f)32", "stores": r"st\.global\S*\.v4\.(b|u|f)32"}


def declared(what: str) -> dict:
    """VARIANTS, WIDE or QUICK of all ops, names prefixed by the op's."""
    found = {}
    for path in sorted((TESTS / "kernels" / "variants").glob("*.py")):
        part = getattr(importlib.import_module(f"tests.kernels.variants.{path.stem}"), what)
        part = part if isinstance(part, dict) else dict.fromkeys(part)
        found |= {f"{path.stem}: {name}": value for name, value in part.items()}
    return found


class _Driver:
    """What Triton asks of a device before it compiles."""

    def __init__(self, architecture: int) -> None:
        self.target = GPUTarget("cuda", architecture, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def compiled_instead_of_launched(architecture: int) -> Iterator[list]:
    """Inside, a launch compiles its kernel for the architecture and adds it to the list."""
    kernels, launch = [], JITFunction.run

    def compile_only(self, *args, grid, warmup, **kwargs):
        assert all(size > 0 for size in grid), f"{self.fn.__name__}: launched on the grid {grid}"
        kernels.append(launch(self, *args, grid=grid, warmup=True, **kwargs))
        return kernels[-1]

    triton.runtime.driver.set_active(_Driver(architecture))
    JITFunction.run = compile_only
    try:
        yield kernels
    finally:
        JITFunction.run = launch


def tool(name: str, *arguments: object) -> str:
    """What a tool that Triton carries prints."""
    path = Path(triton.__file__).parent / "backends/nvidia/bin" / name
    return run([path, *map(str, arguments)], capture_output=True, text=True, check=True).stdout


def inspect(kernel) -> dict[str, int]:
    """Resources of a compiled kernel, and how it touches memory."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = tool("cuobjdump", "--dump-resource-usage", file.name)
        code = tool("nvdisasm", "-c", file.name)
    pattern = r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)"
    registers, stack, shared, local = map(int, re.search(pattern, usage).groups())
    assert re.search(r"\bEXIT\b", code), "this is no SASS"
    return {
        "registers": registers,
        "shared": shared + kernel.metadata.shared,
        "stack": stack + local,
        "spill_instructions": len(re.findall(r"\b(LDL|STL)\b", code)),
        **{k: len(re.findall(p, kernel.asm["ptx"])) for k, p in WIDE_ACCESS.items()},
    }


def compile_variants(names: list[str], architectures: list[int]) -> dict[str, dict[str, int]]:
    """Resources by "<op>: <variant>: <kernel> sm_<architecture>"."""
    calls, rows = declared("VARIANTS"), {}
    for name in names:
        for architecture in architectures:
            with compiled_instead_of_launched(architecture) as kernels:
                calls[name]()
            assert kernels, f"{name} launched no kernel"
            for kernel in kernels:
                key = f"{name}: {kernel.metadata.name} sm_{architecture}"
                assert key not in rows, f"{key} is launched twice; split the variant"
                rows[key] = inspect(kernel)
    return rows


def record(rows: dict[str, dict[str, int]]) -> None:
    """Replace the recorded rows of the same variants, for this version of Triton."""
    tables = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    known = set(declared("VARIANTS"))

    def variant(key: str) -> tuple[str, str]:
        return key.rpartition(": ")[0], key.split()[-1]

    fresh = {variant(key) for key in rows}
    kept = {
        key: row
        for key, row in tables.get(triton.__version__, {}).items()
        if variant(key) not in fresh and variant(key)[0] in known
    }
    tables[triton.__version__] = dict(sorted((kept | rows).items()))
    lines = [
        f'"{version}": {{\n'
        + ",\n".join(f"  {json.dumps(key)}: {json.dumps(row)}" for key, row in table.items())
        + "\n}"
        for version, table in sorted(tables.items())
    ]
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--architectures", type=int, nargs="+", default=ARCHITECTURES)
    parser.add_argument("--op", action="append", help="only this op's variants; may be repeated")
    parser.add_argument("--quick", action="store_true", help="only the variants named QUICK")
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    names = declared("QUICK" if arguments.quick else "VARIANTS")
    ops = arguments.op or {name.split(":")[0] for name in names if not name.startswith("_")}
    names = [name for name in names if name.split(":")[0] in ops]
    rows = compile_variants(names, arguments.architectures)
    if arguments.record:
        record(rows)
    json.dump({"triton": triton.__version__, "kernels": rows, "wide": declared("WIDE")}, sys.stdout)


if __name__ == "__main__":
    main()
