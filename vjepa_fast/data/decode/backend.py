"""The interface of a decoding backend, and the choice between DALI and PyAV."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Set
from concurrent.futures import Future
from typing import Literal, Protocol

import numpy as np
import torch

from vjepa_fast.data.decode.color import BT601, LUMA, RANGE_FOLLOWED
from vjepa_fast.data.manifest.entries import Entries, entries_of
from vjepa_fast.data.manifest.entry import ManifestEntry, Seek
from vjepa_fast.data.plan.clip_plan import ClipPlan
from vjepa_fast.data.workers.process_pool import ProcessPool
from vjepa_fast.errors import UserError

Backend = Literal["auto", "dali", "pyav"]
AS_CONFIGURED = "as configured"
DALI_CODECS = {
    "cpu": frozenset({"vp8", "vp9", "mjpeg"}),
    "cuda": frozenset({"av1", "h264", "hevc", "mjpeg", "mpeg4", "vp8", "vp9"}),
}
# The matrices that DALI's CPU decoder converts right: it knows one.
AS_BT601 = [number for number, luma in LUMA.items() if luma == LUMA[BT601]]
# Smallest side in pixels that NVDEC decodes (NVIDIA's decoder programming guide, table of limits).
NVDEC_SMALLEST = {"av1": 128, "hevc": 144, "vp9": 128}


class Decoder(Protocol):
    """A decoding backend: PyAV or DALI.

    `submit` starts work on a batch. `collect` waits for its video, and for the clips that have none
    it gives the reason, by their position in the batch.

    Attributes:
        name: name of the backend.
        fallback: the videos that it leaves to another decoder, as far as known.
        pool: killable processes, for what else reads the videos.
    """

    name: str
    fallback: Set[int]
    pool: ProcessPool

    def submit(self, plans: Sequence[ClipPlan]) -> list[Future]: ...
    def collect(
        self, plans: Sequence[ClipPlan], submitted: list[Future]
    ) -> tuple[torch.Tensor, dict[int, str]]: ...
    def close(self) -> None: ...


def choose_backend(
    backend: Backend, entries: Sequence[ManifestEntry], device: torch.device
) -> tuple[str, str]:
    """Choose the backend of a data set.

    Args:
        backend: "auto" takes DALI on a GPU where it decodes at least half of the videos. On a CPU
            PyAV takes less time, for any video (docs/data.md).
        entries: the videos.
        device: device of the clips.

    Returns:
        "dali" or "pyav", and why.

    Raises:
        UserError: "dali" is asked for and decodes none of the videos, or cannot be imported.
    """
    if backend == "pyav":
        return "pyav", AS_CONFIGURED
    if backend == "auto" and device.type == "cpu":
        return "pyav", "it takes less time than DALI on a CPU"
    no_dali, rest = _dali_import_error(), ""
    if no_dali is None:
        unsuited, kinds = unsuited_to_dali(entries, device)
        by_pyav, total = int(unsuited.sum()), len(entries)
        if by_pyav == total:
            no_dali = f"DALI decodes none of the videos on {device.type}: {kinds}"
        elif by_pyav:
            rest = f"PyAV decodes {by_pyav} of {total} videos: {kinds}"
            if backend == "auto" and 2 * by_pyav > total:
                no_dali = (
                    f"DALI decodes only {total - by_pyav} of {total} videos on {device.type}, the "
                    f"others are {kinds}"
                )
    if backend == "dali":
        if no_dali:
            raise UserError(
                f'data.backend: found "dali", but {no_dali}, expected videos that DALI decodes; '
                'set data.backend to "auto" or "pyav"'
            )
        return "dali", f"{AS_CONFIGURED}; {rest}" if rest else AS_CONFIGURED
    if no_dali:
        return "pyav", no_dali
    return "dali", rest or "it decodes every video of the manifests"


def unsuited_to_dali(
    entries: Sequence[ManifestEntry], device: torch.device
) -> tuple[np.ndarray, str]:
    """Which videos DALI cannot decode on a device, or not in the right colors.

    Returns:
        bool [len(entries)], and their kinds in words with an example; "" if there are none.
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
        of_kind = {kind: found}
        if codec in DALI_CODECS[device.type]:
            of_kind |= _of_other_colors(entries, codec, device)
        for kind, where in of_kind.items():
            found = where & (codec_of == number) & ~unsuited
            if found.any():
                unsuited |= found
                kinds[kind] += int(found.sum())
    counted = ~unsuited & (entries.optional_column("seek") != Seek.BY_STAMP)
    several = ~unsuited & ~counted & (entries.optional_column("stream") != -1)
    for found, kind in ((counted, "without usable time stamps"), (several, "of several streams")):
        if found.any():
            unsuited |= found
            kinds[kind] += int(found.sum())
    if not kinds:
        return unsuited, ""
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    return unsuited, f"{counts}, such as {entries[int(unsuited.argmax())].path}"


def _of_other_colors(entries: Entries, codec: str, device: torch.device) -> dict[str, np.ndarray]:
    """By kind, which of the videos DALI does not show in the right colors, bool [len(entries)].

    On a CPU it takes every matrix for BT.601 and follows FFmpeg's range. On a GPU the matrix can be
    corrected afterwards; of the range, its source tells that it follows the stream's flag, which is
    certain for H.264 and H.265.
    """
    matrix, full_range = map(entries.optional_column, ("matrix", "full_range"))
    unknown = matrix == -1
    found = {"with unknown colors (index their folder again)": unknown}
    if device.type == "cpu":
        found[f"{codec} in other colors than BT.601's"] = ~np.isin(matrix, AS_BT601) & ~unknown
        return found
    found[f"{codec} in RGB or gray"] = ~np.isin(matrix, list(LUMA)) & ~unknown
    limited = full_range == 0
    if codec in RANGE_FOLLOWED:
        limited |= full_range == 1
    found[f"{codec} of full range"] = ~limited
    return found


def _dali_import_error() -> str | None:
    try:
        import nvidia.dali  # noqa: F401
    except ImportError as error:
        return f"nvidia.dali cannot be imported ({error})"
    return None
