"""Videos whose frames show their numbers, and reading these from clips."""

from __future__ import annotations

import os
from pathlib import Path

import av
import numpy as np
import torch
from av.video.frame import PictureType

from vjepa_fast.data.manifest.files import write_manifest
from vjepa_fast.data.prepare.inspect import probe_video

# Encoder, extension and options; the encoders of H.264 and H.265 choose B-frames.
ENCODERS = {
    "h264": ("libx264", "mp4", {"preset": "veryfast"}),
    # Closed GOPs: after a seek into open ones decord shows other frames than were asked for.
    "hevc": ("libx265", "mp4", {"preset": "veryfast", "x265-params": "log-level=error:open-gop=0"}),
    "vp9": ("libvpx-vp9", "webm", {"deadline": "realtime", "cpu-used": "8", "crf": "32"}),
    "av1": ("libsvtav1", "mp4", {"preset": "8", "crf": "32", "svtav1-params": "lp=1"}),
}
os.environ["SVT_LOG"] = "1"  # of SVT-AV1: errors only
_BITS = 10  # of a frame's number
_DETAIL = 4.0  # standard deviation of the finest texture, gray levels


def make_video(
    folder: Path, codec: str, size: tuple[int, int], gop: int, frames: int
) -> tuple[Path, dict[str, int]]:
    """Make a numbered video of a kind and its manifest.

    Above are the bits of the number in black and white. Below, textured ground pans like a camera.

    Returns:
        The manifest, and facts of the file: its bytes, and its B-frames.
    """
    encoder, extension, options = ENCODERS[codec]
    width, height = size
    name = f"{codec}_{width}x{height}_{gop}"
    path = folder / f"{name}.{extension}"
    ground = _ground(height + 2 * frames, width + 2 * frames)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(encoder, rate=25, options=dict(options))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.gop_size = gop
        for number in range(frames):
            picture = ground[number:, 2 * number :][:height, :width].copy()
            bits = number >> (np.arange(width) * _BITS // width) & 1
            picture[: height // 2] = 255 * bits[:, None]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    manifest = folder / f"{name}.csv"
    write_manifest(manifest, [probe_video(path)])
    return manifest, {"bytes": path.stat().st_size, "b_frames": _b_frames(path)}


def _ground(height: int, width: int) -> np.ndarray:
    """Texture of several scales, its finest of luma only as in photographs: uint8 [H, W, 3]."""
    random = torch.Generator().manual_seed(0)
    ground = torch.full((height, width, 3), 128.0)
    for step, contrast, channels in ((64, 50, 3), (16, 25, 3), (4, 12, 1)):
        shape = 1, channels, height // step + 2, width // step + 2
        coarse = torch.randn(shape, generator=random) * contrast
        fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
        ground += fine[0].permute(1, 2, 0)
    ground += torch.randn((height, width, 1), generator=random) * _DETAIL
    return ground.clamp(0, 255).byte().numpy()


def _b_frames(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(frame.pict_type == PictureType.B for frame in container.decode(video=0))


def frame_numbers(clip: np.ndarray) -> list[int]:
    """The numbers shown by the frames of a clip, uint8 [T, S, S, 3]."""
    row = clip[:, clip.shape[1] // 4].astype(float).mean(-1)
    bits = row[:, ((np.arange(_BITS) + 0.5) * clip.shape[2] / _BITS).astype(int)] > 128
    return (bits << np.arange(_BITS)).sum(1).tolist()
