"""`vjepa-fast transcode`: copy a manifest's videos so that they decode faster."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import suppress
from time import process_time
from typing import TYPE_CHECKING

from vjepa_fast.commands.terminal import add_workers_argument, path_argument, positive_int
from vjepa_fast.errors import UserError

if TYPE_CHECKING:
    from vjepa_fast.data.manifest.entry import ManifestEntry

HELP = "make small copies of a manifest's videos that decode faster"
MEASURED = 20  # videos whose decoding is timed
FRAMES, FRAME_STEP, CROP_SIZE = 16, 4, 224  # of the clip that is timed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument("manifest", type=path_argument, help="manifest of the videos to copy")
    parser.add_argument("--output", type=path_argument, required=True, help="folder for the copies")
    parser.add_argument("--codec", default="h264", help="h264 (default) or vp9")
    parser.add_argument(
        "--short-side",
        type=positive_int,
        default=320,
        help="shorter side of the copies in pixels, even (default: 320)",
    )
    parser.add_argument(
        "--gop",
        type=positive_int,
        default=12,
        help="key frame interval in frames (default: 12)",
    )
    add_workers_argument(parser)


def run(options: argparse.Namespace) -> int:
    """Write the copies; print the rejected videos, and sizes and decoding times of both sets."""
    import numpy as np

    from vjepa_fast.data.manifest.files import read_manifest
    from vjepa_fast.data.open_manifest import read_videos
    from vjepa_fast.data.prepare.transcode import transcode_manifest

    target, rejected = transcode_manifest(
        options.manifest,
        options.output,
        options.codec,
        options.short_side,
        options.gop,
        options.workers,
        progress=True,
    )
    for path, reason in rejected:
        print(f"rejected {path}: {reason}")
    copies = read_manifest(target)
    missing = {path for path, _ in rejected}
    originals = [entry for entry in read_videos(options.manifest) if entry.path not in missing]
    megabytes = [sum(e.size_bytes for e in entries) / 1e6 for entries in (originals, copies)]
    print(
        f"{target}: {len(copies)} videos, {megabytes[0]:.1f} MB before and {megabytes[1]:.1f} MB "
        f"after; {len(rejected)} videos rejected"
    )
    chosen = np.linspace(0, len(copies) - 1, min(MEASURED, len(copies))).astype(int)
    pairs = [(originals[i], copies[i]) for i in chosen]
    seconds = decoding_times(pairs)
    if seconds:
        before, after = np.mean(seconds, axis=0).tolist()
        print(
            f"decoding a clip of {FRAMES} frames, one in {FRAME_STEP}, to {CROP_SIZE} px "
            f"with PyAV, CPU time: {1e3 * before:.1f} ms before, {1e3 * after:.1f} ms after "
            f"({before / after:.1f} x; mean of {len(seconds)} videos)"
        )
    if failed := len(pairs) - len(seconds):
        print(
            f"not timed: {failed} of {len(pairs)} videos, whose original or copy cannot be decoded"
        )
    return 0


def decoding_times(
    pairs: Sequence[tuple[ManifestEntry, ManifestEntry]],
) -> list[tuple[float, float]]:
    """CPU seconds to decode a clip of each original and of its copy, the same frames of both.

    Pairs of which one cannot be decoded are left out.
    """
    seconds = []
    for i, (original, copy) in enumerate(pairs):
        position = (i + 0.5) / len(pairs)
        with suppress(UserError):
            seconds.append((_decoding_time(original, position), _decoding_time(copy, position)))
    return seconds


def _decoding_time(entry: ManifestEntry, position: float) -> float:
    import numpy as np

    from vjepa_fast.data.decode.pyav import decode_clip
    from vjepa_fast.data.plan.clip_plan import ClipPlan
    from vjepa_fast.data.plan.frame_sampling import Windows

    frames = Windows(num_frames=FRAMES, frame_step=FRAME_STEP).frames_at_step(
        np.array([entry.frames]),
        np.zeros(1, dtype=np.int64),
        lambda room: (room * position).astype(np.int64),
    )[0]
    plan = ClipPlan(0, entry.path, 0, frames, (0.0, 0.0, 1.0, 1.0), False, {})
    decode_clip(plan, entry, CROP_SIZE)  # fills the page cache
    start = process_time()
    decode_clip(plan, entry, CROP_SIZE)
    return process_time() - start
