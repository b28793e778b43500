"""The C++ mask sampler under AddressSanitizer and UndefinedBehaviorSanitizer, on random input:
a minute of it here (two seeds side by side, half a minute each), eight minutes with the slow tests.
"""

import os
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLAGS = ["-std=c++17", "-O1", "-g", "-pthread", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"]
FLAGS += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory):
    """The fuzzing program, built with both sanitizers: a function of seconds, seeds and options
    that runs once for each seed, all at a time."""
    program = tmp_path_factory.mktemp("fuzz") / "fuzz_masks"
    sources = [ROOT / "tests" / "fuzz_masks.cpp"]
    sources += [path for path in (ROOT / "csrc").glob("*.cpp") if path.name != "bindings.cpp"]
    compiler = os.environ.get("CXX", "c++").split()
    command = [*compiler, *FLAGS, f"-I{ROOT / 'csrc'}", *sources, "-o", program]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr

    def run(seconds, seeds, *options):
        """Each run's standard output, standard error and exit status."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        commands = [[program, str(seconds), str(seed), *options] for seed in seeds]
        started = [subprocess.Popen(command, **pipes) for command in commands]
        return [(*process.communicate(), process.returncode) for process in started]

    return run


def check(runs):
    for output, errors, status in runs:
        assert status == 0, output + errors
        assert errors == ""
        calls, refused = (int(part.split()[0]) for part in output.split(","))
        assert calls > 100 and refused < calls / 2


def test_random_input_for_a_minute(fuzz):
    check(fuzz(30, (1, 2)))


def test_a_buffer_that_is_one_token_short_is_seen(fuzz):
    ((_, errors, status),) = fuzz(5, (1,), "short")
    assert status != 0
    assert "heap-buffer-overflow" in errors


@pytest.mark.slow
def test_random_input_for_minutes(fuzz):
    seed = int(time.time())
    print(f"seeds {seed} and {seed + 1}")  # shown where it fails
    check(fuzz(240, (seed, seed + 1)))
