"""Every kernel as a GPU would get it: no spills, 16-byte accesses, resources as recorded."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
RECORDED = json.loads((TESTS / "golden" / "kernel_resources.json").read_text())


def compiled(*arguments):
    done = subprocess.run(
        [sys.executable, str(TESTS / "compile_kernels.py"), *arguments],
        env={name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def spilling(kernels):
    return {key for key, row in kernels.items() if row["stack"] or row["spill_instructions"]}


def check(found, everything):
    kernels = found["kernels"]
    assert kernels and not spilling(kernels)
    for key, row in kernels.items():
        variant, _, kernel = key.rpartition(": ")
        if found["wide"].get(variant) == kernel.split()[0]:
            assert row["loads"] and row["stores"], f"{key} has no 16-byte accesses"
    if found["triton"] not in RECORDED:
        pytest.skip(
            f"found no recorded resources for Triton {found['triton']}, expected some of "
            f"{', '.join(RECORDED)}; add them with python tests/compile_kernels.py --record"
        )
    recorded = RECORDED[found["triton"]]
    changed = {
        key: (row, recorded.get(key)) for key, row in kernels.items() if recorded.get(key) != row
    }
    assert not changed, (
        "found, recorded; run python tests/compile_kernels.py --record if it is right"
    )
    assert not everything or set(kernels) == set(recorded)


def test_a_few_kernels():
    check(compiled("--quick", "--architectures", "90"), everything=False)


@pytest.mark.slow
def test_all_kernels():
    found = compiled()
    assert {key.split("sm_")[1] for key in found["kernels"]} == {"80", "90", "100"}
    check(found, everything=True)


def test_a_spill_is_seen():
    kernels = compiled("--op", "_spilling", "--architectures", "90")["kernels"]
    assert len(kernels) == 1 and spilling(kernels) == set(kernels)
    (row,) = kernels.values()
    assert row["stack"] > 0 and row["spill_instructions"] > 0
