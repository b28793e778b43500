"""What the planner hands to the decoders (ClipPlan) and the loader to the trainer (ClipBatch)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from vjepa_fast.data.plan.frame_sampling import TimedWindow


@dataclass(frozen=True)
class ClipPlan:
    """Every random choice about one clip, so that any decoder shows the same one.

    Attributes:
        sample_id: what the choices were drawn for.
        path: the video's file.
        video: index of the video in the planner's `entries`.
        frames: frame indices, int64 [T], each in 0 .. frames of the video - 1; or a TimedWindow,
            where they follow from the time stamps in the file (`decode.time_stamps`).
        crop: (top, left, height, width) as fractions of the picture, on whole pixels.
        flip: mirror left and right.
        labels: the video's labels by name.
    """

    sample_id: int
    path: str
    video: int
    frames: np.ndarray | TimedWindow
    crop: tuple[float, float, float, float]
    flip: bool
    labels: dict[str, int]

    @property
    def num_frames(self) -> int:
        """T, the frames of the clip."""
        if isinstance(self.frames, TimedWindow):
            return self.frames.windows.num_frames
        return len(self.frames)


@dataclass(frozen=True)
class ClipBatch:
    """A decoded micro-batch.

    Attributes:
        video: uint8 [B, T, H, W, 3], RGB, on the loader's device.
        labels: int64 [B] by name, on the CPU.
        sample_ids: int64 [B], on the CPU.
    """

    video: torch.Tensor
    labels: dict[str, torch.Tensor]
    sample_ids: torch.Tensor
