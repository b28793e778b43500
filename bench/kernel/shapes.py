"""The type of a case of bench/kernels.py, and the shapes of the paper's models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Provider = Callable[..., Tensor | Sequence[Tensor]]


@dataclass(frozen=True)
class Case:
    """One op at one shape.

    Attributes:
        op: its name, as `--only` takes it.
        shape: the shape as text.
        inputs: arguments of every provider.
        wrt: positions of the inputs that receive gradients; none: forward only.
        providers: baseline first, ours last.
        forward_bytes, backward_bytes: what the op must at least read and write, each byte once.
    """

    op: str
    shape: str
    inputs: tuple[Tensor, ...]
    wrt: tuple[int, ...]
    providers: dict[str, Provider]
    forward_bytes: int
    backward_bytes: int = 0


@dataclass(frozen=True)
class Model:
    """A model's sizes, and token counts of the paper's two mask specs (as in a batch of 24)."""

    name: str
    width: int
    blocks: int
    grid: tuple[int, int, int] = (8, 14, 14)
    context: tuple[int, ...] = (365, 104)
    targets: tuple[int, ...] = (751, 1102)
    predictor_width: int = 384
    heads: int = 16

    @property
    def tokens(self) -> int:
        return self.grid[0] * self.grid[1] * self.grid[2]


MODELS = (Model("ViT-L", 1024, 24), Model("ViT-H", 1280, 32))


def nbytes(*tensors: Tensor) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def draw_masks(
    tokens: int, lengths: Sequence[int], clips: int, device: torch.device
) -> list[Tensor]:
    """For each length random ascending tokens of every clip, int64 [clips, length]."""
    keys = torch.rand(len(lengths), clips, tokens, device=device)
    return [k.argsort(1)[:, :n].sort(1).values for k, n in zip(keys, lengths, strict=True)]


def flat_rows(masks: Sequence[Tensor], tokens: int) -> Tensor:
    """Rows of the masks' tokens in a tensor [clips * tokens, D], mask by mask, clip by clip."""
    first = tokens * torch.arange(len(masks[0]), device=masks[0].device)[:, None]
    return torch.cat([(first + mask).flatten() for mask in masks])
