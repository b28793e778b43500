"""Weights of any published kind, in the names of our parameters, read one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Weight:
    """One parameter of ours, not yet in memory.

    Attributes:
        shape: of the parameter.
        pieces: read a tensor of the file each; their values one after another, in raster order,
            are the parameter's (`transformers` cuts qkv in three).
    """

    shape: tuple[int, ...]
    pieces: tuple[Callable[[], Tensor], ...]

    def read(self) -> Tensor:
        """The parameter, fp32, on the host."""
        flat = [piece().reshape(-1).float() for piece in self.pieces]
        return (flat[0] if len(flat) == 1 else torch.cat(flat)).view(self.shape)


# How clips are sampled where a file does not say it: as the published models of its generation.
PUBLISHED_PACE: dict[int, dict[str, float]] = {1: {"frame_step": 4}, 2: {"fps": 4.0}}


@dataclass(frozen=True)
class WeightFile:
    """What a file or folder of weights holds.

    Attributes:
        path: the file or folder, as named by the user.
        kind: "published" (files of facebookresearch/jepa and vjepa2), "transformers" (a folder or
            file of VJEPA2Model, or of our own export of the first generation), "safetensors" (our
            own export of one encoder).
        generation: 1 or 2.
        model: the `model` section of a config, complete, as plain JSON data.
        num_frames: frames per clip; several for a predictor trained on several lengths.
        crop_size: side of a clip in pixels.
        pace: how clips are sampled: {"frame_step": frames of the video} or {"fps": frames
            per second}.
        parts: the parameters of "encoder", "target_encoder" and "predictor" by our names, in the
            order of the network's; only the parts that are there.
        left_out: why each tensor that is known and not used is left out, by its name in the file.
        recognized: by what "generation" and "clip" were recognized, in words.
    """

    path: Path
    kind: Literal["published", "transformers", "safetensors"]
    generation: Literal[1, 2]
    model: dict
    num_frames: tuple[int, ...]
    crop_size: int
    pace: dict[str, float]
    parts: dict[str, dict[str, Weight]]
    left_out: dict[str, str] = field(default_factory=dict)
    recognized: dict[str, str] = field(default_factory=dict)

    @property
    def target_encoder(self) -> str:
        """The part that stands for the target encoder: the file's only encoder, if it has one."""
        return "target_encoder" if "target_encoder" in self.parts else "encoder"

    def state(self, part: str) -> dict[str, Tensor]:
        """Read the parameters of a part, fp32, by our names."""
        return {name: weight.read() for name, weight in self.parts[part].items()}
