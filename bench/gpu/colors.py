"""Checks that DALI shows the drawn colors of tagged videos on a device, and that PyAV does.

    python bench/gpu/colors.py cuda        # or: cpu, where DALI gets other videos

Prints one JSON list. On a GPU, DALI knows the matrix of BT.601 only, so the loader corrects the
others; it follows the range of H.264 and H.265.
"""

from __future__ import annotations

import json
import sys
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from av.video.reformatter import Interpolation

from vjepa_fast.data.loader import make_loader
from vjepa_fast.data.manifest.entries import entries_of
from vjepa_fast.data.manifest.entry import ManifestEntry
from vjepa_fast.data.plan.planner import ClipPlanner
from vjepa_fast.data.prepare.inspect import probe_video
from vjepa_fast.errors import UserError, exit_status

SIDE, FRAMES, THREADS = 256, 16, 2
# Colors that stay within 0 .. 255 where BT.601's matrix is applied to BT.709 or BT.2020.
COLORS = [(190, 80, 60), (70, 180, 90), (60, 70, 160), (170, 170, 80), (80, 160, 170)]
COLORS += [(160, 90, 170), (40, 40, 40), (220, 220, 220)]
TOLERANCE = 3.0  # gray levels from the drawn color, of every channel; a wrong matrix: 6 and more
H264, HEVC = ("libx264", {"crf": "4"}), ("libx265", {"crf": "4", "x265-params": "log-level=none"})
VP9 = ("libvpx-vp9", {"crf": "4", "b": "0", "deadline": "realtime", "cpu-used": "8"})
# Device -> name: encoder and options, pixel format, matrix (AVColorSpace), full range.
VIDEOS = {
    "cuda": {
        "H.264, BT.601": (H264, "yuv420p", 5, False),
        "H.264, BT.709": (H264, "yuv420p", 1, False),
        "H.264, BT.709, full range": (H264, "yuv420p", 1, True),
        "H.265, BT.601, full range": (HEVC, "yuv420p", 5, True),
        "H.265, BT.2020, 10 bit": (HEVC, "yuv420p10le", 9, False),
        "VP9, BT.709": (VP9, "yuv420p", 1, False),
    },
    "cpu": {
        "VP9, BT.601": (VP9, "yuv420p", 5, False),
        "VP9, BT.601, full range": (VP9, "yuv420p", 5, True),
    },
}


def drawn() -> np.ndarray:
    """The colors as two rows of four patches: uint8 [SIDE, SIDE, 3]."""
    patches = np.array(COLORS, np.uint8).reshape(2, 4, 3)
    return patches.repeat(SIDE // 2, 0).repeat(SIDE // 4, 1)


def write(
    path: Path, encoder: tuple[str, dict[str, str]], pixels: str, matrix: int, full: bool
) -> ManifestEntry:
    """Encode the colors, and index the file."""
    tags = matrix, 2 if full else 1
    accurate = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP
    with av.open(str(path), "w") as container:
        stream = container.add_stream(encoder[0], 25, options=encoder[1])
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, pixels
        stream.codec_context.colorspace, stream.codec_context.color_range = tags
        picture = av.VideoFrame.from_ndarray(drawn(), format="rgb24")
        frame = picture.reformat(
            format=pixels,
            dst_colorspace=tags[0],
            dst_color_range=tags[1],
            interpolation=accurate,
        )
        for i in range(FRAMES):
            frame.pts, frame.time_base = i, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return probe_video(path)


def shown(entry: ManifestEntry, backend: str, device: str) -> np.ndarray:
    """The first frame as the trainer's loader gives it, uint8 [SIDE, SIDE, 3].

    Raises:
        UserError: another decoder took over.
    """
    planner = ClipPlanner([entries_of([entry])], num_frames=FRAMES, frame_step=1, augment=None)
    with make_loader(planner, [[0]], SIDE, backend, device, THREADS) as loader:
        video = next(loader).video
        if loader.backend != backend or loader.fallback:
            raise UserError(f"found that PyAV took over, expected {backend}; see the log")
    return video[0, 0].cpu().numpy()


def error(picture: np.ndarray) -> float:
    """The largest difference of a patch's mean from what was drawn, of any channel."""
    patches = picture.reshape(2, SIDE // 2, 4, SIDE // 4, 3)[:, 16:-16, :, 16:-16]
    means = patches.astype(float).mean((1, 3))
    return float(np.abs(means - np.reshape(COLORS, (2, 4, 3))).max())


def main() -> int:
    """1 if a decoder shows wrong colors."""
    device, rows = sys.argv[1], []
    with tempfile.TemporaryDirectory() as folder:
        for i, (name, video) in enumerate(VIDEOS[device].items()):
            suffix = "webm" if video[0] is VP9 else "mp4"
            entry = write(Path(folder) / f"{i}.{suffix}", *video)
            row = {"video": name}
            for backend in ("dali", "pyav"):
                try:
                    row[backend] = error(shown(entry, backend, device))
                except UserError as problem:
                    row[backend] = str(problem)
            rows.append(row)
            print(row, flush=True)
    print(json.dumps(rows))
    right = [
        isinstance(row[backend], float) and row[backend] <= TOLERANCE
        for row in rows
        for backend in ("dali", "pyav")
    ]
    return int(not all(right))


if __name__ == "__main__":
    torch.set_num_threads(1)
    raise SystemExit(exit_status(main))
