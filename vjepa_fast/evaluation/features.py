"""Frozen features of whole clips, held in memory for probing."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from vjepa_fast.data.loader import make_loader
from vjepa_fast.data.planner import ClipPlanner
from vjepa_fast.errors import UserError
from vjepa_fast.kernels import patchify
from vjepa_fast.models.encoder import VisionTransformer
from vjepa_fast.models.jepa import encode_clips


@dataclass(frozen=True)
class Clips:
    """A manifest's clips, decoded once: video uint8 [n, T, H, W, 3], labels int64 [n] by name."""

    video: Tensor
    labels: dict[str, Tensor]


def load_clips(
    manifest: Path,
    labels: Sequence[str],
    *,
    num_frames: int,
    frame_step: int,
    fps: float | None = None,
    crop_size: int,
    backend: str = "auto",
    num_threads: int = 2,
) -> Clips:
    """Decode the middle window of every video, centre square, no augmentation, on the host.

    Raises:
        UserError: a label that the manifest lacks; what the loader raises.
    """
    planner = ClipPlanner.in_order(
        [manifest], num_frames=num_frames, frame_step=frame_step, fps=fps
    )
    missing = [name for name in labels if name not in planner.label_names]
    if missing:
        raise UserError(
            f"{manifest}: found labels {', '.join(planner.label_names) or 'none'}, expected "
            f"{', '.join(missing)}; name labels that have a column label_<name> there"
        )
    for name in labels:
        low = min(entry.labels[name] for entry in planner.entries)
        if low < 0:
            raise UserError(
                f"{manifest}: found {low} in label_{name}, expected classes counted from 0; "
                "number them so"
            )
    starts = range(0, len(planner), 64)
    batches = [list(range(s, min(s + 64, len(planner)))) for s in starts]
    size = len(planner) * num_frames * crop_size * crop_size * 3
    _require_memory(size, torch.device("cpu"), str(manifest), len(planner))
    loader = make_loader(
        planner, batches, crop_size, backend=backend, num_threads=num_threads, prefetch=4
    )
    with loader:
        progress = tqdm(loader, f"decoding {manifest.name}", len(batches), leave=False)
        read = [(batch.video, batch.labels) for batch in progress]
    video = torch.cat([v for v, _ in read])
    return Clips(video, {n: torch.cat([found[n] for _, found in read]) for n in labels})


Featurize = Callable[[Tensor], Tensor]


def encoder_features(encoder: VisionTransformer) -> Featurize:
    """A frozen encoder as a function of video, uint8 [B, T, H, W, 3] → [B, N, D]."""

    def featurize(video: Tensor) -> Tensor:
        return encode_clips(encoder, video).view(video.shape[0], -1, encoder.width)

    return featurize


def pixel_features(patch_size: int, tubelet_size: int) -> Featurize:
    """Normalised pixels of each token, uint8 [B, T, H, W, 3] → [B, N, 3 · tubelet · patch²]."""

    def featurize(video: Tensor) -> Tensor:
        rows = patchify(video, patch_size=patch_size, tubelet_size=tubelet_size)
        return rows.view(video.shape[0], -1, rows.shape[1])

    return featurize


@torch.no_grad()
def all_features(featurize: Featurize, video: Tensor, device: torch.device, name: str) -> Tensor:
    """Features of all clips, fp32 on the device, [n, N, D]."""
    first = featurize(video[:1].to(device))
    _require_memory(first.numel() * 4 * len(video), device, f"features of {name}", len(video))
    out = torch.empty(len(video), *first.shape[1:], device=device)
    for batch, place in zip(
        tqdm(video.split(64), f"features of {name}", leave=False), out.split(64), strict=True
    ):
        place.copy_(featurize(batch.to(device)))
    return out


def _require_memory(size: int, device: torch.device, what: str, clips: int) -> None:
    """Refuse what does not fit before hours of work have gone into it."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
    else:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size > free:
        raise UserError(
            f"{what}: found {clips} clips, which take {size / 1e9:.1f} GB, expected at most the "
            f"{free / 1e9:.1f} GB that are free on {device.type}; name manifests with fewer videos "
            "with --train and --test"
        )
