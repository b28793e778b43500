"""The numeric tests with other instructions and with two threads, whose sums round differently.

Tolerances that were read off one processor show here: ours must be as near to float64 as plain
PyTorch is with the same instructions.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
import torch

from tests.helpers.paths import REPOSITORY

# PyTorch's own kernels, MKL and oneDNN choose instructions separately.
SSE = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
}
AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
}
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
# Waiting threads sleep, else they take the time of others on a busy machine.
TWO_THREADS = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}

GATE = "tests/bench/test_throughput.py::test_it_compares_and_then_times"
# Each rule of comparison once, small tests that compute most: a whole step of training, whole steps
# of the published code, and the losses of 20 steps.
WHOLE = [GATE, "tests/golden_parity", "tests/test_drop_in.py"]
# Kernels in their reference form and models; not what is compiled, since a compiler chooses
# instructions on its own.
PARTS = [
    *(f"tests/kernels/test_{name}.py" for name in ("ema", "feature_loss", "gather", "patchify")),
    "tests/kernels/test_predictor_tokens.py",
    "tests/kernels/test_rope.py",
    "tests/models/test_jepa.py",
    "tests/models/test_second_generation.py",
    "tests/models/test_sequences.py",
    "tests/evaluation/test_attentive_classifier.py",
    "tests/training/batches/test_lengths.py",
    "tests/training/checkpoint/test_checkpoint.py",
    "tests/training/zero/test_stages.py::test_stages_equal_a_plain_loop",
]
# A compiler chooses instructions on its own; opcheck and counts of bytes have no numbers to round.
LEFT_OUT = "not compile and not opcheck and not byte"
NORMS = ["tests/training/zero/test_engine.py::test_gradients_and_clipping"]


def python(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=REPOSITORY,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="chooses among x86's instructions"
)
@pytest.mark.parametrize(
    ("instructions", "threads", "tests"),
    [
        pytest.param(SSE, ONE_THREAD, [*WHOLE, *PARTS, *NORMS], id="sse"),
        pytest.param(AVX2, ONE_THREAD, WHOLE, id="avx2"),
        pytest.param(AVX2, TWO_THREADS, [GATE, *PARTS], id="avx2, two threads"),
        pytest.param({}, TWO_THREADS, WHOLE, id="two threads"),
    ],
)
def test_other_instructions_round_as_well(
    instructions: dict[str, str], threads: dict[str, str], tests: list[str]
) -> None:
    environment = instructions | threads
    asked = "import torch; print(torch.backends.cpu.get_cpu_capability(), torch.get_num_threads())"
    expected = instructions.get("ATEN_CPU_CAPABILITY", torch.backends.cpu.get_cpu_capability())
    found = python(environment, "-c", asked).stdout.split()
    if expected.upper() == "AVX2" and found[0] == "DEFAULT":
        pytest.skip("this processor has no AVX2")
    assert found == [expected.upper(), threads["OMP_NUM_THREADS"]]
    options = ["-q", "-p", "no:cacheprovider", "-k", LEFT_OUT]
    done = python(environment, "-m", "pytest", *options, *tests)
    assert done.returncode == 0, done.stdout + done.stderr
