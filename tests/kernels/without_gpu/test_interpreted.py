"""Runs triton_kernels/ under Triton's interpreter, which must be chosen before an import."""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from tests.helpers.paths import REPOSITORY

ROOT = REPOSITORY
FOLDER = "tests/kernels/triton_kernels"


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_kernels_under_the_interpreter():
    files = sorted(f"{FOLDER}/{path.name}" for path in (ROOT / FOLDER).glob("test_*.py"))
    assert f"{FOLDER}/test_ema.py" in files

    def interpret(part):
        return run("-rp", *part, TRITON_INTERPRET="1", VJEPA_FAST_KERNELS="triton")

    passed = set()
    with ThreadPoolExecutor(2) as pool:  # a process on each of two cores
        for done in pool.map(interpret, (files[::2], files[1::2])):
            assert done.returncode == 0, done.stdout + done.stderr
            assert "skipped" not in done.stdout.splitlines()[-1], done.stdout
            passed |= set(re.findall(r"^PASSED (\S+\.py)::", done.stdout, re.MULTILINE))
    assert passed == set(files)


def test_without_a_gpu_its_tests_skip_or_fail_as_asked():
    """`--device cuda` on a machine whose GPUs are hidden."""
    hidden = {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "0", "VJEPA_FAST_KERNELS": "auto"}
    only = (FOLDER, "--device", "cuda", "-k", "test_ops_choose_triton", "-rs")
    skipped = run(*only, **hidden, VJEPA_FAST_REQUIRE_CUDA="0")
    assert skipped.returncode == 0 and "1 skipped" in skipped.stdout, skipped.stdout
    assert "found no GPU, expected one for --device cuda" in skipped.stdout
    failed = run(*only, **hidden, VJEPA_FAST_REQUIRE_CUDA="1")
    assert failed.returncode == 1 and "1 error" in failed.stdout, failed.stdout
