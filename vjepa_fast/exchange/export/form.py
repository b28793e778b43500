"""What the three forms have in common: how they are written, checked and described."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vjepa_fast.errors import UserError
from vjepa_fast.exchange.export.source import LazyTensor, Source, Tensors
from vjepa_fast.models.encoder import VisionTransformer
from vjepa_fast.models.jepa import encode_clips
from vjepa_fast.training.checkpoint.format import Streamed, shard_bytes, write_shard

FEATURES_TOLERANCE = 1e-5  # of the largest feature, or of 1 if that is larger


@dataclass(frozen=True)
class Form:
    """One form of an export, ready to be written.

    Attributes:
        size: bytes that its weights take, and a little more.
        write: writes all files but the model card into a folder.
        check: loads what was written as its user would; returns the largest difference of what
            comes out from what comes out of ours, and the largest one allowed.
        library, tags, title: for the model card.
        parts: what is in the folder, one sentence a line, for the model card.
        load: the code that loads it, run in the parent folder; `NAME` stands for the folder's name.
    """

    size: int
    write: Callable[[Path], None]
    check: Callable[[Path], tuple[float, float]]
    library: str
    tags: tuple[str, ...]
    title: str
    parts: tuple[str, ...]
    load: str


def random_clip(source: Source) -> Tensor:
    """A short clip of noise, uint8 [1, T, S, S, 3], of the run's size and at most two tubelets."""
    frames = source.config.model.tubelet_size * min(2, source.config.grid[0])
    side = source.config.data.crop_size
    generator = torch.Generator().manual_seed(0)
    shape = (1, frames, side, side, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


@torch.no_grad()
def features(encoder: VisionTransformer, video: Tensor) -> Tensor:
    """All tokens of clips: uint8 [B, T, H, W, 3] → [B, N, D]."""
    return encode_clips(encoder, video).view(len(video), -1, encoder.width)


def own_features(source: Source, video: Tensor) -> Tensor:
    """Features by our encoder with the checkpoint's weights.

    Raises:
        UserError: they are not finite.
    """
    found = features(source.build_encoder(), video)
    if not found.isfinite().all():
        raise UserError(
            f"{source.checkpoint.folder}: found features that are not finite, expected weights "
            "without NaN or infinity; export an older checkpoint"
        )
    return found


def difference(found: Tensor, expected: Tensor) -> float:
    """Largest absolute difference; NaN and another shape count as infinite."""
    if found.shape != expected.shape:
        return math.inf
    largest = (found.double() - expected.double()).abs().max().item()
    return math.inf if math.isnan(largest) else largest


@torch.no_grad()
def from_ours(
    found: Tensor, source: Source, video: Tensor, head: nn.Module | None = None
) -> tuple[float, float]:
    """How far another program's result in fp32 is from ours, and how far it may be.

    It may be FEATURES_TOLERANCE away, relative to the largest value, or to 1 if that is larger. A
    network that amplifies roundings more is compared in fp64. Then found may be as far from ours as
    that, and ten times the error of ours in fp32 besides (the pixels are rounded elsewhere, too),
    but no more than 1 % of the largest value: a wrong weight or position costs more.

    Args:
        found: features or logits.
        source: what they should be from.
        video: the clips, uint8 [B, T, H, W, 3].
        head: what follows our encoder, in fp32.
    """
    ours = own_features(source, video)
    ours = ours if head is None else head(ours)
    scale = max(1.0, ours.abs().max().item())
    largest = difference(found, ours)
    if largest <= FEATURES_TOLERANCE * scale or math.isinf(largest):
        return largest, FEATURES_TOLERANCE * scale
    exact = features(source.build_encoder().double(), video)
    exact = exact if head is None else copy.deepcopy(head).double()(exact)
    allowed = 10 * difference(ours, exact) + FEATURES_TOLERANCE * scale
    return difference(found, exact), min(allowed, 0.01 * scale)


def safetensors_size(tensors: Tensors, metadata: dict[str, str]) -> int:
    """Bytes of the file that `write_safetensors` writes."""
    return shard_bytes(_streamed(tensors), metadata)


def write_safetensors(path: Path, tensors: Tensors, metadata: dict[str, str]) -> None:
    """Write tensors one after another, so that only one is in memory, and sync the file.

    Raises:
        OSError: the file cannot be written, e.g. because the disk is full.
    """
    write_shard(path, _streamed(tensors), metadata)


def _streamed(tensors: Tensors) -> dict[str, Streamed]:
    return {name: Streamed(value.shape, _read(value)) for name, value in tensors.items()}


def _read(tensor: LazyTensor) -> Iterator[Tensor]:
    yield tensor.read().reshape(-1).contiguous()
