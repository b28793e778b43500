"""The harness itself: kernels run, unwritten memory shows, and the error rule can fail."""

import pytest
import torch
import triton
import triton.language as tl

from tests.rounding.accuracy import assert_accurate
from vjepa_fast.kernels._dispatch import use_triton


@triton.jit
def all_but_the_last_kernel(p_out, size, BLOCK: tl.constexpr):
    o = tl.arange(0, BLOCK)
    tl.store(p_out + o, tl.full([BLOCK], 1.0, tl.float32), o < size - 1)


@pytest.mark.parametrize("allocate", ["empty", "empty_like", "new_empty"])
def test_an_unwritten_element_shows(device, allocate):
    like = torch.zeros(8, device=device)
    out = {
        "empty": lambda: torch.empty(8, device=device),
        "empty_like": lambda: torch.empty_like(like),
        "new_empty": lambda: like.new_empty(8),
    }[allocate]()
    all_but_the_last_kernel[(1,)](out, 8, BLOCK=16)
    assert out.isnan().tolist() == [False] * 7 + [True]


def test_ops_choose_triton(device):
    assert use_triton("harness", torch.zeros(1, device=device))


@triton.jit
def cast_kernel(p_x, p_out, SIZE: tl.constexpr):
    o = tl.arange(0, SIZE)
    tl.store(p_out + o, tl.load(p_x + o).to(tl.bfloat16))


def test_casts_to_bfloat16_round_to_nearest(device):
    x = torch.randn(64, device=device)
    out = torch.empty(64, dtype=torch.bfloat16, device=device)
    cast_kernel[(1,)](x, out, SIZE=64)
    assert torch.equal(out, x.bfloat16())


def test_the_error_rule_rejects():
    exact = torch.linspace(0, 1, 100)
    torchs = exact.bfloat16()
    assert_accurate(torchs, torchs, exact)
    with pytest.raises(AssertionError, match="allowed"):
        assert_accurate((exact + 0.02).bfloat16(), torchs, exact)
    hole = torchs.clone()
    hole[3] = float("nan")
    with pytest.raises(AssertionError, match="NaN"):
        assert_accurate(hole, torchs, exact)
