"""A pre-norm transformer block on the flat token axis, and its initialization."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from vjepa_fast.models.attention import attention
from vjepa_fast.models.positions import Rotary, rotate
from vjepa_fast.models.sequences import SeqLayout

NORM_EPS = 1e-6
INIT_STD = 0.02


class Attention(nn.Module):
    """Linear layers before and after multi-head self-attention.

    The block calls the attention between them, so that torch.compile, which does not trace the
    attention, splits a block into two graphs and not three.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(
                f"heads: found {heads}, expected a divisor of the width {width}; change one of them"
            )
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def split(self, x: Tensor) -> Tensor:
        """Queries, keys and values: [rows, D] → [rows, 3, heads, D / heads]."""
        return self.qkv(x).view(x.shape[0], 3, self.heads, -1)

    def merge(self, x: Tensor) -> Tensor:
        """Output projection: [rows, heads, D / heads] → [rows, D]."""
        return self.proj(x.flatten(1))


class Mlp(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


def mlp_width(width: int, ratio: float) -> int:
    """Hidden width of an MLP; rounded, since a ratio as 48/11 has no exact float."""
    return round(width * ratio)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); [rows, D] → [rows, D], dtype of x.

    With `rotary`, queries and keys are rotated by the positions of their rows. With `factors`, fp32
    [2, rows], the two branches are multiplied by them before they are added (drop path).
    """

    def __init__(
        self, width: int, heads: int, mlp_ratio: float = 4.0, norm_eps: float = NORM_EPS
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = Mlp(width, mlp_width(width, mlp_ratio))

    def forward(
        self,
        x: Tensor,
        layout: SeqLayout,
        rotary: Rotary | None = None,
        factors: Tensor | None = None,
    ) -> Tensor:
        qkv = self.attn.split(self.norm1(x))
        if rotary is not None:
            qkv = rotate(qkv, rotary)
        branch = self.attn.merge(attention(qkv, layout))
        if factors is None:
            x = x + branch
            return x + self.mlp(self.norm2(x))
        x = x + _scaled(branch, factors[0])
        return x + _scaled(self.mlp(self.norm2(x)), factors[1])


def _scaled(branch: Tensor, factors: Tensor) -> Tensor:
    """branch [rows, D] times factors, fp32 [rows], in the dtype of the branch."""
    return (branch * factors[:, None]).to(branch.dtype)


def init_weights(module: nn.Module) -> None:
    """Truncated normal of std 0.02, biases 0, norm weights 1; for `Module.apply`."""
    if isinstance(module, nn.Linear | nn.Conv3d):
        nn.init.trunc_normal_(module.weight, std=INIT_STD)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


def scale_init_by_depth(blocks: nn.ModuleList) -> None:
    """Divide the output projections of block l = 1, 2, … by sqrt(2 l)."""
    for depth, block in enumerate(blocks, start=1):
        block.attn.proj.weight.data.div_(math.sqrt(2.0 * depth))
        block.mlp.fc2.weight.data.div_(math.sqrt(2.0 * depth))
