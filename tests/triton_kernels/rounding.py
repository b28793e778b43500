"""fp32 to a narrower dtype, as the device that runs the kernels does it."""

import torch
from torch import Tensor


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x rounded to nearest, but under Triton's interpreter (CPU tensors) cut off for bfloat16."""
    if dtype == torch.bfloat16 and x.device.type == "cpu":
        x = (x.float().contiguous().view(torch.int32) & -(2**16)).view(torch.float32).view(x.shape)
    return x.to(dtype)
