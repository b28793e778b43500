"""Which decoder takes which video: DALI what it can decode on the device, PyAV the rest."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from vjepa_fast.data.manifest import ManifestEntry
from vjepa_fast.errors import UserError

Backend = Literal["auto", "dali", "pyav"]
AS_CONFIGURED = "as configured"
DALI_CODECS = {
    "cpu": frozenset({"vp8", "vp9", "mjpeg"}),
    "cuda": frozenset({"av1", "h264", "hevc", "mjpeg", "mpeg4", "vp8", "vp9"}),
}
# Smallest side in pixels that NVDEC decodes (NVIDIA's decoder programming guide, table of limits).
NVDEC_SMALLEST = {"av1": 128, "hevc": 144, "vp9": 128}


def choose_backend(
    backend: Backend, entries: Sequence[ManifestEntry], device: torch.device
) -> tuple[str, str]:
    """("dali" or "pyav", why). `auto` takes DALI where it decodes at least half of the videos.

    Raises UserError if "dali" is asked for and decodes none of them, or cannot be imported.
    """
    if backend == "pyav":
        return "pyav", AS_CONFIGURED
    obstacle = _dali_obstacle()
    share = ""
    if obstacle is None:
        unsuited, kinds = unsuited_to_dali(entries, device)
        rest, all_of_them = int(unsuited.sum()), len(entries)
        if rest == all_of_them:
            obstacle = f"DALI decodes none of the videos on {device.type}: {kinds}"
        elif rest:
            share = f"PyAV decodes {rest} of {all_of_them} videos: {kinds}"
            if backend == "auto" and 2 * rest > all_of_them:
                obstacle = (
                    f"DALI decodes only {all_of_them - rest} of {all_of_them} videos on "
                    f"{device.type}, the others are {kinds}"
                )
    if backend == "dali":
        if obstacle:
            raise UserError(
                f'found data.backend = "dali" but {obstacle}, expected it to decode the manifests, '
                'set data.backend to "auto" or "pyav"'
            )
        return "dali", f"{AS_CONFIGURED}; {share}" if share else AS_CONFIGURED
    if obstacle:
        return "pyav", obstacle
    return "dali", share or "it decodes every video of the manifests"


def unsuited_to_dali(
    entries: Sequence[ManifestEntry], device: torch.device
) -> tuple[np.ndarray, str]:
    """Which videos DALI cannot decode on this device, bool [len(entries)], and their kinds in
    words, with an example; no words where there are none.
    """
    unsuited = np.zeros(len(entries), dtype=bool)
    kinds: Counter[str] = Counter()
    for i, entry in enumerate(entries):
        kind = _unsuited_kind(entry, device.type)
        if kind is not None:
            unsuited[i] = True
            kinds[kind] += 1
    if not kinds:
        return unsuited, ""
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    return unsuited, f"{counts}, such as {entries[int(unsuited.argmax())].path}"


def _unsuited_kind(entry: ManifestEntry, device_type: str) -> str | None:
    if entry.codec not in DALI_CODECS[device_type]:
        return entry.codec
    if entry.codec == "mjpeg" and entry.frames == 1:
        return "images"
    smallest = NVDEC_SMALLEST.get(entry.codec, 0) if device_type == "cuda" else 0
    if min(entry.width, entry.height) < smallest:
        return f"{entry.codec} smaller than the {smallest} px that the GPU's decoder takes"
    return None


def _dali_obstacle() -> str | None:
    try:
        import nvidia.dali  # noqa: F401
    except ImportError as error:
        return f"nvidia.dali cannot be imported ({error})"
    return None
