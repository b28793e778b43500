"""A kernel that must spill, to prove that the test for spills can fail."""

import torch
import triton
import triton.language as tl

from vjepa_fast.kernels._dispatch import LAUNCH


@triton.jit
def spilling_kernel(p_x, p_out, SIZE: tl.constexpr):
    o = tl.arange(0, SIZE)
    b = tl.load(p_x + o)
    tl.store(p_out + o, b - tl.sum(b, 0))


def spill():
    x = torch.empty(16384, device="meta")
    # 512 values for each thread to keep
    spilling_kernel[(1,)](x, x, SIZE=16384, num_warps=1, **LAUNCH)


VARIANTS = {"spill": spill}
WIDE, QUICK = {}, ()
