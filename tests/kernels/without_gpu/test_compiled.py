"""Every kernel compiled for GPUs: no spills, 16-byte accesses, no warnings, recorded resources."""

import json
import os
import subprocess
import sys

import pytest

from tests.helpers.paths import GOLDEN, REPOSITORY

RECORDED = json.loads((GOLDEN / "kernel_resources.json").read_text())


def run(*arguments):
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", *arguments],
        cwd=REPOSITORY,
        env={name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def compiled(*arguments):
    return run("tests/helpers/compile_kernels.py", *arguments)


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
            f"{', '.join(RECORDED)}; add them with python tests/helpers/compile_kernels.py --record"
        )
    recorded = RECORDED[found["triton"]]
    changed = {
        key: (row, recorded.get(key)) for key, row in kernels.items() if recorded.get(key) != row
    }
    assert not changed, (
        "found, recorded; run python tests/helpers/compile_kernels.py --record if it is right"
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


LENGTHS = """
import json, sys, torch
from tests.helpers.compile_kernels import compiled_instead_of_launched
from vjepa_fast.kernels.gather import launch_gather
from vjepa_fast.kernels.gather_backward import launch_scatter

def count(lengths):
    with compiled_instead_of_launched(90) as kernels:
        for k in lengths:
            masks = [torch.empty(b, k, dtype=torch.int64, device="meta") for b in (24, 24)]
            rows = launch_gather(torch.empty(24, 1568, 64, device="meta"), masks)
            launch_scatter(rows, masks, 24, 1568)
    return len(kernels), len(set(map(id, kernels)))

json.dump(count([int(k) for k in sys.argv[1:]]), sys.stdout)
"""


def test_masks_of_new_lengths_compile_nothing_new():
    """Truncated masks have another length every step."""
    assert run("-c", LENGTHS, "365", "368", "1", "2", "512") == [15, 3]
