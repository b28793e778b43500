"""Which decoder takes which video: DALI what it can decode on the device, PyAV the rest."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from vjepa_fast.data.manifest.entry import Entries, ManifestEntry, entries_of
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
    if not isinstance(entries, Entries):
        entries = entries_of(entries)
    unsuited = np.zeros(len(entries), dtype=bool)
    codec_of, frames = entries.column("codec"), entries.column("frames")
    smaller_side = np.minimum(entries.column("width"), entries.column("height"))
    kinds: Counter[str] = Counter()
    for number, codec in enumerate(entries.codecs):
        found, kind = codec_of == number, codec
        if codec == "mjpeg":
            found, kind = found & (frames == 1), "images"
        elif codec in DALI_CODECS[device.type]:
            smallest = NVDEC_SMALLEST.get(codec, 0) if device.type == "cuda" else 0
            found = found & (smaller_side < smallest)
            kind = f"{codec} smaller than the {smallest} px that the GPU's decoder takes"
        if found.any():
            unsuited |= found
            kinds[kind] += int(found.sum())
    if not kinds:
        return unsuited, ""
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    return unsuited, f"{counts}, such as {entries[int(unsuited.argmax())].path}"


def _dali_obstacle() -> str | None:
    try:
        import nvidia.dali  # noqa: F401
    except ImportError as error:
        return f"nvidia.dali cannot be imported ({error})"
    return None
