"""The C++ mask sampler under AddressSanitizer and UndefinedBehaviorSanitizer, on random input."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLAGS = ["-std=c++17", "-O1", "-g", "-pthread", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"]
FLAGS += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory):
    """The fuzzing program, built with both sanitizers: a function of its arguments."""
    program = tmp_path_factory.mktemp("fuzz") / "fuzz_masks"
    sources = [ROOT / "tests" / "fuzz_masks.cpp"]
    sources += [path for path in (ROOT / "csrc").glob("*.cpp") if path.name != "bindings.cpp"]
    compiler = os.environ.get("CXX", "c++").split()
    command = [*compiler, *FLAGS, f"-I{ROOT / 'csrc'}", *sources, "-o", program]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr

    def run(*arguments):
        command = [program, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    return run


def check(done):
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    calls, refused = (int(part.split()[0]) for part in done.stdout.split(","))
    assert calls > 100 and refused < calls / 2


def test_random_input_for_some_seconds(fuzz):
    check(fuzz(40, 1))


def test_a_buffer_that_is_one_token_short_is_seen(fuzz):
    done = fuzz(5, 1, "short")
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr


@pytest.mark.slow
def test_random_input_for_minutes(fuzz):
    check(fuzz(240, 2))
