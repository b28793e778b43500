"""Decodes the clips of a manifest and computes their frozen features, in memory."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vjepa_fast.data.bad_clips import MAX_BAD_FRACTION
from vjepa_fast.data.loader import make_decoder
from vjepa_fast.data.open_manifest import open_manifest
from vjepa_fast.data.plan.clip_plan import ClipPlan
from vjepa_fast.data.plan.planner import ClipPlanner
from vjepa_fast.errors import UserError
from vjepa_fast.inference.clips import decode_ahead
from vjepa_fast.kernels import patchify
from vjepa_fast.models.encoder import VisionTransformer
from vjepa_fast.models.jepa import encode_clips
from vjepa_fast.progress import with_progress

_BATCH = 64  # clips

log = logging.getLogger("vjepa_fast")


@dataclass(frozen=True)
class Clips:
    """A manifest's clips, decoded once.

    Attributes:
        video: uint8 [n, T, H, W, 3], on the host.
        labels: int64 [n] by name.
        sample_ids: row of each clip's video in the manifest, int64 [n].
        left_out: paths of videos that could not be decoded.
    """

    video: Tensor
    labels: dict[str, Tensor]
    sample_ids: Tensor
    left_out: tuple[str, ...] = ()


def labeled_planner(
    manifest: Path,
    labels: Sequence[str],
    *,
    num_frames: int,
    frame_step: int,
    fps: float | None = None,
) -> ClipPlanner:
    """Plan one clip of every video in a manifest: its middle window, center crop.

    Raises:
        UserError: the manifest lacks a label, or has a negative class, which in other trainers'
            lists means that a video has no label.
    """
    planner = ClipPlanner.in_order(
        open_manifest(manifest), num_frames=num_frames, frame_step=frame_step, fps=fps
    )
    missing = [name for name in labels if name not in planner.label_names]
    if missing:
        raise UserError(
            f"{manifest}: found labels {', '.join(planner.label_names) or 'none'}, expected "
            f"{', '.join(missing)}; name labels that have a column label_<name>"
        )
    for name in labels:
        column = planner.entries.column(f"label_{name}")
        if negative := int((column < 0).sum()):
            raise UserError(
                f"{manifest}: found {negative} of {len(column)} videos with a negative number in "
                f"label_{name} (the lowest: {column.min()}), expected 0 or more, since -1 often "
                "means no label; leave these videos out, or number their classes from 0"
            )
    return planner


def load_clips(
    manifest: Path,
    labels: Sequence[str],
    *,
    num_frames: int,
    frame_step: int,
    fps: float | None = None,
    crop_size: int,
    backend: str = "auto",
    num_workers: int = 2,
    max_bad_fraction: float = MAX_BAD_FRACTION,
) -> Clips:
    """Decode the middle window and center crop of every video, without augmentation.

    A video that cannot be decoded is left out, with a warning.

    Args:
        manifest: the videos.
        labels: names of label columns to read.
        num_frames, frame_step, fps: the window, as in the config's data section.
        crop_size: side of the square in pixels.
        backend, num_workers: see `make_decoder`.
        max_bad_fraction: largest fraction of the videos that may fail to decode.

    Raises:
        UserError: the manifest lacks a label; the backend cannot be used; too many videos, or all,
            fail to decode.
    """
    planner = labeled_planner(
        manifest, labels, num_frames=num_frames, frame_step=frame_step, fps=fps
    )
    shape = len(planner), num_frames, crop_size, crop_size, 3
    _require_memory(math.prod(shape), torch.device("cpu"), str(manifest), len(planner))
    video = torch.empty(shape, dtype=torch.uint8)
    shown: list[ClipPlan] = []
    left_out: list[str] = []
    with closing(make_decoder(planner, crop_size, backend, "cpu", num_workers)) as decoder:
        ids = [range(len(planner))[i : i + _BATCH] for i in range(0, len(planner), _BATCH)]
        decoded = decode_ahead((planner.plan(batch) for batch in ids), decoder)
        decoded = with_progress(
            decoded, f"decoding {manifest.name}", len(ids), "batch", leave=False
        )
        for plans, found, failures in decoded:
            for i, plan in enumerate(plans):
                if i not in failures:
                    video[len(shown)] = found[i]
                    shown.append(plan)
                    continue
                log.warning("left out of the evaluation: %s", failures[i])
                left_out.append(plan.path)
                if len(left_out) > max_bad_fraction * len(planner) or len(left_out) == len(planner):
                    raise UserError(
                        f"{manifest}: found {len(left_out)} undecodable among the first "
                        f"{plan.sample_id + 1} of {len(planner)} videos (the last one: "
                        f"{failures[i]}), expected at most data.max_bad_fraction = "
                        f"{max_bad_fraction:g} of them; index its folder again"
                    )
    return Clips(
        video[: len(shown)],
        {name: torch.tensor([plan.labels[name] for plan in shown]) for name in labels},
        torch.tensor([plan.sample_id for plan in shown]),
        tuple(left_out),
    )


Featurize = Callable[[Tensor], Tensor]


def encoder_features(encoder: VisionTransformer) -> Featurize:
    """A frozen encoder as a function of video, uint8 [B, T, H, W, 3] → [B, N, D]."""

    def featurize(video: Tensor) -> Tensor:
        return encode_clips(encoder, video).view(video.shape[0], -1, encoder.width)

    return featurize


def pixel_features(patch_size: int, tubelet_size: int) -> Featurize:
    """Normalized pixels of each token, uint8 [B, T, H, W, 3] → [B, N, 3 · tubelet · patch²]."""

    def featurize(video: Tensor) -> Tensor:
        rows = patchify(video, patch_size=patch_size, tubelet_size=tubelet_size)
        return rows.view(video.shape[0], -1, rows.shape[1])

    return featurize


@torch.no_grad()
def all_features(
    featurize: Featurize, video: Tensor, clips: Tensor, device: torch.device, name: str
) -> Tensor:
    """Features of the clips with these indices (int64 [n]), fp32 [n, N, D] on the device."""
    out = None
    starts = range(0, len(clips), _BATCH)
    for start in with_progress(starts, f"features of {name}", len(starts), "batch", leave=False):
        found = featurize(video[clips[start : start + _BATCH]].to(device))
        if out is None:
            size = found[0].numel() * 4 * len(clips)
            _require_memory(size, device, f"features of {name}", len(clips))
            out = torch.empty(len(clips), *found.shape[1:], device=device)
        out[start : start + _BATCH] = found
    return out


def _require_memory(size: int, device: torch.device, what: str, clips: int) -> None:
    """Raise before hours of work if their result will not fit."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
    else:
        free = _available_memory()
    if size > free:
        raise UserError(
            f"{what}: found {clips} clips, which take {size / 1e9:.1f} GB, expected at most the "
            f"{free / 1e9:.1f} GB that are free on {device.type}; pass manifests with fewer videos "
            "to --train and --test"
        )


def _available_memory() -> int:
    """Bytes that the host can give without swapping; the file cache counts, since it gives way."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) * 1024
