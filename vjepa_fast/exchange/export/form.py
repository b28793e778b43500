"""What the three forms have in common: how they are written, checked and described."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vjepa_fast.errors import UserError
from vjepa_fast.exchange.export.source import Source, Tensors
from vjepa_fast.models.encoder import VisionTransformer
from vjepa_fast.models.jepa import encode_clips

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


def difference(found: Tensor, expected: Tensor) -> tuple[float, float]:
    """Largest difference, and the tolerance of it; NaN counts as infinite."""
    if found.shape != expected.shape:
        return float("inf"), FEATURES_TOLERANCE
    largest = (found.double() - expected.double()).abs().max().item()
    scale = max(1.0, expected.abs().max().item())
    return (largest if largest == largest else float("inf")), FEATURES_TOLERANCE * scale


def safetensors_header(tensors: Tensors, metadata: dict[str, str]) -> bytes:
    """The first bytes of a safetensors file of fp32 tensors, its length included."""
    header: dict[str, dict] = {"__metadata__": metadata}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + 4 * tensor.size
        shape = list(tensor.shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # aligns the tensors
    return len(text).to_bytes(8, "little") + text


def safetensors_size(tensors: Tensors, metadata: dict[str, str]) -> int:
    """Bytes of the file that `write_safetensors` writes."""
    own = sum(4 * tensor.size for tensor in tensors.values())
    return own + len(safetensors_header(tensors, metadata))


def write_safetensors(path: Path, tensors: Tensors, metadata: dict[str, str]) -> None:
    """Write fp32 tensors one after another, so that only one is in memory, and sync the file.

    safetensors' own writer wants all of them in memory, and raises no OSError on a full disk.

    Raises:
        OSError: the file cannot be written, e.g. because the disk is full.
    """
    with open(path, "wb") as file:
        file.write(safetensors_header(tensors, metadata))
        for tensor in tensors.values():
            file.write(tensor.read().contiguous().numpy())
        file.flush()
        os.fsync(file.fileno())
