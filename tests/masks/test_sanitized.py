"""The C++ mask sampler under AddressSanitizer and UndefinedBehaviorSanitizer, on random input.

The slow tests make 32 times as many calls, and run other test files on bindings with sanitizers.
"""

import os
import subprocess
import sys
import sysconfig
import time

import pybind11
import pytest

from tests.helpers.paths import REPOSITORY

ROOT = REPOSITORY
FLAGS = ["-std=c++17", "-O1", "-g", "-pthread", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"]
FLAGS += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
COMPILER = os.environ.get("CXX", "c++").split()
SOURCES = sorted((ROOT / "csrc").glob("*.cpp"))
CALLS = 2000  # of the sampler, for each seed


def compile_with_sanitizers(program, *arguments):
    """Compile to `program`, given further flags and sources."""
    command = [*COMPILER, *FLAGS, f"-I{ROOT / 'csrc'}", *arguments, "-o", program]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory):
    """The fuzzing program, built with both sanitizers, as a function of calls, seeds and options.

    It runs one process for each seed, all at a time.
    """
    program = tmp_path_factory.mktemp("fuzz") / "fuzz_masks"
    sources = [path for path in SOURCES if path.name != "bindings.cpp"]
    compile_with_sanitizers(program, ROOT / "tests" / "masks" / "fuzz_masks.cpp", *sources)

    def run(calls, seeds, *options):
        """Standard output, standard error and exit status of each run."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        commands = [[program, str(calls), str(seed), *options] for seed in seeds]
        started = [subprocess.Popen(command, **pipes) for command in commands]
        return [(*process.communicate(), process.returncode) for process in started]

    return run


def check(least, runs):
    for output, errors, status in runs:
        assert status == 0, output + errors
        assert errors == ""
        calls, rejected = (int(part.split()[0]) for part in output.split(","))
        assert calls >= least and rejected < calls / 2


def test_random_input(fuzz):
    check(CALLS // 4, fuzz(CALLS // 4, (1, 2)))


def test_a_buffer_that_is_one_token_short_is_seen(fuzz):
    ((_, errors, status),) = fuzz(CALLS, (1,), "short")
    assert status != 0
    assert "heap-buffer-overflow" in errors


@pytest.mark.slow
def test_more_random_input(fuzz):
    seed = int(time.time())
    print(f"seeds {seed} and {seed + 1}")  # shown if the test fails
    check(8 * CALLS, fuzz(8 * CALLS, (seed, seed + 1)))


ON_SANITIZED_BINDINGS = """
import sys
from importlib.util import module_from_spec, spec_from_file_location

import pytest

spec = spec_from_file_location("vjepa_fast.masks._sampler", sys.argv[1])
sys.modules[spec.name] = module = module_from_spec(spec)
spec.loader.exec_module(module)
status = pytest.main(["-q", "-p", "no:cacheprovider", *sys.argv[2:]])
from vjepa_fast.masks import sampler

assert sampler._sampler.__file__ == sys.argv[1]
sys.exit(status)
"""


@pytest.mark.slow
def test_the_bindings_under_sanitizers(tmp_path):
    """Other tests of the sampler, on an extension that is built with the sanitizers."""
    runtimes = [
        subprocess.check_output([*COMPILER, f"-print-file-name={name}"], text=True).strip()
        for name in ("libasan.so", "libstdc++.so")
    ]
    if not all(map(os.path.isabs, runtimes)):
        pytest.skip("needs a compiler with libasan.so and libstdc++.so to load into Python: GCC")
    module = tmp_path / "_sampler.so"
    folders = [pybind11.get_include(), sysconfig.get_path("include")]
    flags = ["-shared", "-fPIC", "-fvisibility=hidden"]
    compile_with_sanitizers(module, *flags, *(f"-I{folder}" for folder in folders), *SOURCES)
    # Python itself leaks.
    options = "detect_leaks=0"
    environment = os.environ | {"LD_PRELOAD": " ".join(runtimes), "ASAN_OPTIONS": options}
    names = ("sampler", "specs", "variants")
    files = [ROOT / "tests" / "masks" / f"test_{name}.py" for name in names]
    command = [sys.executable, "-c", ON_SANITIZED_BINDINGS, module, *files]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout and "ERROR: AddressSanitizer" not in done.stderr
