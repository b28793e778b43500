"""What is passed from the planner to the loaders (ClipPlan) and from them to the trainer
(ClipBatch).
"""

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class ClipPlan:
    """Everything that chance decides about one clip, so that any loader decodes the same one.

    `video` is the index of the video in the planner's `entries`, `path` its file. `frames` are T
    frame indices, int64, each in 0 .. frames of the video - 1 and never decreasing. `crop` is (top,
    left, height, width) as fractions of the picture, on whole pixels. `flip` mirrors left and
    right. `obstacle` says why nobody can tell which frames to show, then they mean nothing.
    """

    sample_id: int
    path: str
    video: int
    frames: np.ndarray
    crop: tuple[float, float, float, float]
    flip: bool
    labels: dict[str, int]
    obstacle: str | None = None


@dataclass(frozen=True)
class ClipBatch:
    """A micro-batch: `video` uint8 [B, T, H, W, 3] (RGB) on the loader's device.

    `labels` (int64 [B] by name) and `sample_ids` (int64 [B]) are on the CPU.
    """

    video: torch.Tensor
    labels: dict[str, torch.Tensor]
    sample_ids: torch.Tensor
