"""`vjepa-fast info` computes the memory that torch's allocator gives out."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.fake_cuda.steps import WORLD
from tests.helpers.paths import REPOSITORY

CASES = (
    "vitl16",
    "vitl16 activation_checkpointing=selective",
    "vitl16 activation_checkpointing=full",
    "vitl16 micro_batch=16",
    "vith16",
    "v2_vitl16",
)

if WORLD > 1:
    pytest.skip("the same for one process", allow_module_level=True)


@pytest.mark.parametrize("case", CASES)
def test_memory_is_as_computed(case: str) -> None:
    """A process each: what one trainer leaves is freed only while the next one is built."""
    done = subprocess.run(
        [sys.executable, "tests/fake_cuda/memory.py", *case.split()],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    peak, computed = json.loads(done.stdout.splitlines()[-1])
    assert 0.95 * computed < peak < 1.05 * computed, f"{peak / 1e9:.2f} and {computed / 1e9:.2f} GB"
