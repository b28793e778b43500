"""The decoders: ours as the trainer uses them, and what else a user would pick."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from itertools import islice

import numpy as np
import torch

from decoding.videos import frame_numbers
from vjepa_fast.data.decode.pyav import decode_clip
from vjepa_fast.data.loader import make_loader
from vjepa_fast.data.manifest.entry import ManifestEntry
from vjepa_fast.data.plan.clip_plan import ClipPlan
from vjepa_fast.data.plan.planner import ClipPlanner
from vjepa_fast.errors import UserError

_DALI = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")  # one per CUDA version
PACKAGES = {
    "pyav": ("av",),
    "pyav alone": ("av",),
    "dali cpu": _DALI,
    "dali gpu": _DALI,
    "decord": ("decord",),
    "torchcodec": ("torchcodec",),
}
BASELINE = "pyav"
OURS = (BASELINE, "pyav alone")  # as the trainer decodes; one clip per thread, as the others do
OTHERS = ("decord", "torchcodec")  # not ours
_AHEAD = 2  # batches, as many as ours
# Mean difference from PyAV's pixels in gray levels: rounding and chroma differ between decoders.
TOLERANCE = 4.0

Batches = Iterable[list[int]]
Decode = Callable[[ClipPlanner, Batches, int, int], Iterator[torch.Tensor]]
DecodeOne = Callable[[ClipPlan, ManifestEntry, int], torch.Tensor]  # uint8 [T, S, S, 3]


def _ours(backend: str, device: str) -> Decode:
    """The loader as the trainer uses it."""

    def decode(planner: ClipPlanner, batches: Batches, crop_size: int, threads: int) -> Iterator:
        with make_loader(planner, batches, crop_size, backend, device, threads) as loader:
            for batch in loader:
                if loader.fallback:
                    raise UserError(
                        f"found that another decoder took over from {loader.backend} on "
                        f"{loader.fallback[0]}, expected {loader.backend} to decode every clip; "
                        "see the log for its error"
                    )
                yield batch.video

    return decode


def _resized(read_frames: Callable[[ManifestEntry, np.ndarray], np.ndarray]) -> DecodeOne:
    """Make a function that decodes a clip from one that reads frames [n, H, W, 3]."""

    def one(plan: ClipPlan, entry: ManifestEntry, crop_size: int) -> torch.Tensor:
        wanted, order = np.unique(plan.frames, return_inverse=True)
        top, left, height, width = plan.crop
        rows = slice(round(top * entry.height), round((top + height) * entry.height))
        columns = slice(round(left * entry.width), round((left + width) * entry.width))
        frames = torch.from_numpy(read_frames(entry, wanted)[:, rows, columns])
        video = torch.nn.functional.interpolate(
            frames.permute(0, 3, 1, 2), (crop_size, crop_size), mode="bilinear", antialias=True
        ).permute(0, 2, 3, 1)[torch.from_numpy(order)]
        return video.flip(2) if plan.flip else video

    return one


def _clip_by_clip(one: DecodeOne) -> Decode:
    """Make a loader from a function that decodes a clip: one clip per thread, as many batches ahead
    as ours."""

    def decode(planner: ClipPlanner, batches: Batches, crop_size: int, threads: int) -> Iterator:
        batches = iter(batches)
        with ThreadPoolExecutor(threads) as pool:
            ahead: deque = deque()
            while True:
                for ids in islice(batches, _AHEAD - len(ahead)):
                    plans = planner.plan(ids)
                    clips = [
                        pool.submit(one, p, planner.entries[p.video], crop_size) for p in plans
                    ]
                    ahead.append(clips)
                if not ahead:
                    return
                yield torch.stack([clip.result() for clip in ahead.popleft()])

    return decode


def _decord(entry: ManifestEntry, wanted: np.ndarray) -> np.ndarray:
    from decord import DECORDError, VideoReader

    try:
        return VideoReader(entry.path, num_threads=1).get_batch(wanted.tolist()).asnumpy()
    except DECORDError as error:  # a codec that it does not know
        raise RuntimeError(str(error)) from None


def _torchcodec(entry: ManifestEntry, wanted: np.ndarray) -> np.ndarray:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(entry.path, dimension_order="NHWC", num_ffmpeg_threads=1)
    return decoder.get_frames_at(wanted.tolist()).data.numpy()


PROVIDERS: dict[str, Decode] = {
    "pyav": _ours("pyav", "cpu"),
    "dali cpu": _ours("dali", "cpu"),
    "dali gpu": _ours("dali", "cuda"),
    "pyav alone": _clip_by_clip(decode_clip),
    "decord": _clip_by_clip(_resized(_decord)),
    "torchcodec": _clip_by_clip(_resized(_torchcodec)),
}


def check(planner: ClipPlanner, ids: list[int], video: torch.Tensor, crop_size: int) -> str | None:
    """What is wrong with a decoder's batch; None if it shows the planned frames in the pixels of
    PyAV's clips."""
    for plan, clip in zip(planner.plan(ids), video.cpu(), strict=True):
        shown = frame_numbers(clip.numpy())
        if shown != plan.frames.tolist():
            return f"shows frames {shown} instead of {plan.frames.tolist()}"
        expected = decode_clip(plan, planner.entries[plan.video], crop_size)
        difference = (clip.float() - expected.float()).abs().mean().item()
        if difference > TOLERANCE:
            return f"is off by {difference:.1f} gray levels on average"
    return None


def versions() -> dict[str, str]:
    """Of the installed packages with decoders."""
    names = sorted({name for packages in PACKAGES.values() for name in packages})
    return {name: found for name in names if (found := _version(name))}


def obstacles(names: Iterable[str]) -> dict[str, str | None]:
    """For each provider why it cannot run here; None if it can."""
    found: dict[str, str | None] = {}
    for name in names:
        found[name] = None
        if not any(map(_version, PACKAGES[name])):
            found[name] = "not installed"
        elif name == "dali gpu" and not torch.cuda.is_available():
            found[name] = "no GPU"
    return found


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
