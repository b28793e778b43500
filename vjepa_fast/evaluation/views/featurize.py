"""Clips as features of their tokens: by an encoder, or the pixels themselves as a baseline."""

from __future__ import annotations

import json
import zlib
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from vjepa_fast.data.manifest.replaced import replaced_atomically
from vjepa_fast.errors import UserError
from vjepa_fast.evaluation.views.decode import ViewDecoder
from vjepa_fast.evaluation.views.source import Featurize
from vjepa_fast.kernels import patchify
from vjepa_fast.locks import sole_writer
from vjepa_fast.models.encoder import VisionTransformer
from vjepa_fast.models.jepa import encode_clips
from vjepa_fast.weights import weights_checksum

_VIDEOS, _TOKENS = 256, 2**15  # of which the components are computed, at most
_KEY = "vjepa_fast"


def encoder_features(encoder: VisionTransformer) -> Featurize:
    """A frozen encoder as a function of video, uint8 [B, T, H, W, 3] → [B, N, D]."""

    def featurize(video: Tensor) -> Tensor:
        return encode_clips(encoder, video).view(video.shape[0], -1, encoder.width)

    return featurize


@dataclass(frozen=True)
class PixelFeatures:
    """The leading principal components of the normalized pixels of each token.

    They are as many as an encoder has features, so that the same probe reads both, and are not
    scaled: in the directions that are kept, distances stay what they are. Where an encoder has more
    features than a token has pixels, the others are 0.

    Attributes:
        mean: of the pixels of a token, fp32 [P], P = 3 · tubelet · patch².
        directions: of the components, orthonormal, fp32 [P, K], K = min(P, width).
        variance: fraction of the pixels' variance that the components hold, in the sample that they
            were computed of.
        width: D, of the features.
        patch_size, tubelet_size: pixels and frames of a token.
    """

    mean: Tensor
    directions: Tensor
    variance: float
    width: int
    patch_size: int
    tubelet_size: int

    def __call__(self, video: Tensor) -> Tensor:
        """uint8 [B, T, H, W, 3] → fp32 [B, N, D], on the video's device."""
        sizes = {"patch_size": self.patch_size, "tubelet_size": self.tubelet_size}
        pixels = patchify(video, **sizes) - self.mean.to(video.device)
        found = pixels @ self.directions.to(video.device)
        found = F.pad(found, (0, self.width - found.shape[1]))
        return found.view(len(video), -1, self.width)

    @property
    def checksum(self) -> int:
        """CRC-32 of the components."""
        return weights_checksum({"mean": self.mean, "directions": self.directions})


def pixel_features(
    views: ViewDecoder,
    *,
    width: int,
    patch_size: int,
    tubelet_size: int,
    folder: Path | None = None,
) -> PixelFeatures:
    """The components of an evenly spaced sample of training videos, and of tokens of each.

    In fp64, and each direction with the sign that makes its largest entry positive: a function of
    the sample up to rounding. As directions of nearly the same variance depend on the rounding,
    processes that share features share a file, too.

    Args:
        views: of the training videos.
        width: D.
        patch_size, tubelet_size: pixels and frames of a token.
        folder: has a file of the components of an earlier call with the same arguments; else one
            process computes and writes them, and the others wait.

    Raises:
        UserError: none of the sample can be decoded.
    """
    rows = np.unique(np.linspace(0, len(views.entries) - 1, _VIDEOS).round().astype(np.int64))

    def fitted() -> PixelFeatures:
        return _fit(views, rows, width, patch_size, tubelet_size)

    if folder is None:
        return fitted()
    settings = views.settings | {"width": width, "patch": patch_size, "tubelet": tubelet_size}
    text = json.dumps(settings, sort_keys=True)
    file = folder / f"pixels-{zlib.crc32(text.encode()):08x}.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    with sole_writer(file, wait=True):
        if (found := _read(file, settings)) is not None:
            return found
        new = fitted()
        header = settings | {"variance": new.variance}
        tensors = {"mean": new.mean, "directions": new.directions.contiguous()}
        with replaced_atomically(file, binary=True) as out:
            out.write(save(tensors, {_KEY: json.dumps(header)}))
        return new


def _read(file: Path, settings: dict) -> PixelFeatures | None:
    """The components in a file; None where there are none, or of something else."""
    try:
        with safe_open(file, framework="pt") as tensors:
            header = json.loads((tensors.metadata() or {}).get(_KEY, "{}"))
            variance = header.pop("variance", 0.0)
            if header != settings:
                return None
            mean, directions = map(tensors.get_tensor, ("mean", "directions"))
    except (OSError, SafetensorError, ValueError):
        return None
    sizes = settings["width"], settings["patch"], settings["tubelet"]
    return PixelFeatures(mean, directions, variance, *sizes)


def _fit(
    views: ViewDecoder, rows: np.ndarray, width: int, patch_size: int, tubelet_size: int
) -> PixelFeatures:
    sample: list[Tensor] = []
    with closing(views.batches((0, rows[i : i + 1]) for i in range(len(rows)))) as batches:
        for batch in batches:
            clips = batch.video.flatten(0, 2)
            if len(clips):
                tokens = patchify(clips, patch_size=patch_size, tubelet_size=tubelet_size)
                sample.append(tokens[:: -(-len(tokens) * len(rows) // _TOKENS)])
    if not sample:
        raise UserError(
            f"{views.entries[int(rows[0])].path}: found that none of {len(rows)} videos like this "
            "one decodes, expected some for the components of pixels; index the videos again"
        )
    found = torch.cat(sample).double()
    mean = found.mean(0)
    found -= mean
    values, vectors = torch.linalg.eigh(found.T @ found / len(found))  # ascending
    kept = min(width, found.shape[1])
    directions = vectors[:, -kept:].flip(1)
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    held = values[-kept:].sum() / values.sum().clamp(min=1e-12)
    return PixelFeatures(
        mean.float().cpu(),
        (directions * largest.sign()).float().cpu(),
        float(held),
        width,
        patch_size,
        tubelet_size,
    )
