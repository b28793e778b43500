"""The numeric tests with the instructions of older processors, whose sums round differently.

Tolerances that were read off one processor show here: ours must be as near to float64 as plain
PyTorch is with the same instructions.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.helpers.paths import REPOSITORY

# PyTorch's own kernels, MKL and oneDNN choose instructions separately.
OLD = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "OMP_NUM_THREADS": "1",
}
# Kernels in their reference form, models, parity and the gate that compares a whole step; not what
# is compiled, since a compiler chooses instructions on its own.
TESTS = [
    *(f"tests/kernels/test_{name}.py" for name in ("ema", "feature_loss", "gather", "patchify")),
    "tests/kernels/test_predictor_tokens.py",
    "tests/models/test_jepa.py",
    "tests/models/test_sequences.py",
    "tests/golden_parity",
    "tests/test_drop_in.py",
    "tests/evaluation/test_attentive_classifier.py",
    "tests/training/zero/test_engine.py::test_gradients_and_clipping",
    "tests/bench/test_throughput.py::test_it_compares_and_then_times",
]


def python(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=REPOSITORY,
        env=os.environ | OLD,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_older_instructions_round_as_well() -> None:
    asked = "import torch; print(torch.backends.cpu.get_cpu_capability())"
    assert python("-c", asked).stdout.strip() == "DEFAULT"
    options = ["-q", "-p", "no:cacheprovider", "-k", "not compile and not opcheck"]
    done = python("-m", "pytest", *options, *TESTS)
    assert done.returncode == 0, done.stdout + done.stderr
