"""A frozen encoder as users call it: video files or tensors in, features of their tokens out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from vjepa_fast.errors import UserError
from vjepa_fast.inference.clips import Sampling, read_middle_clip
from vjepa_fast.models.encoder import VisionTransformer
from vjepa_fast.models.jepa import encode_clips
from vjepa_fast.weights import weights_checksum

Network = Literal["target_encoder", "encoder"]
Video = Tensor | str | os.PathLike
_CROPPED = "cut or resize the frames"


@dataclass(frozen=True)
class Features:
    """Features of B clips.

    Attributes:
        tokens: fp32 [B, N, D], on the encoder's device; raster order, time slowest.
        grid: tokens (T', H', W') of a clip; N = T'H'W'.
    """

    tokens: Tensor
    grid: tuple[int, int, int]

    @property
    def pooled(self) -> Tensor:
        """The mean over the tokens of a clip, fp32 [B, D]."""
        return self.tokens.mean(1)

    @property
    def maps(self) -> Tensor:
        """The tokens at their places, fp32 [B, T', H', W', D]."""
        return self.tokens.unflatten(1, self.grid)


@dataclass(frozen=True)
class VideoEncoder:
    """A frozen encoder, see `load_encoder`; call it on videos.

    Attributes:
        model: the network, in eval mode, without gradients.
        sampling: which frames of a video file make a clip, and their size.
        source: the folder or file that the weights are from.
        network: which of its encoders this is: "target_encoder" (the EMA) or "encoder".
    """

    model: VisionTransformer
    sampling: Sampling
    source: Path
    network: Network

    @property
    def width(self) -> int:
        """D, the features of a token."""
        return self.model.width

    @property
    def num_frames(self) -> int:
        """T, the frames of a clip from a video file."""
        return self.sampling.num_frames

    @property
    def crop_size(self) -> int:
        """Height and width of a clip from a video file, in pixels."""
        return self.sampling.crop_size

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens (T', H', W') of a clip from a video file."""
        embed, side = self.model.patch_embed, self.sampling.crop_size
        tokens = side // embed.patch_size
        return self.sampling.num_frames // embed.tubelet_size, tokens, tokens

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights: the precision of the computation."""
        return self.model.norm.weight.dtype

    @property
    def checksum(self) -> int:
        """CRC-32 of the weights, see `weights_checksum`."""
        return weights_checksum(self.model.state_dict())

    def __call__(self, videos: Video | Sequence[str | os.PathLike]) -> Features:
        """Features of video files or of tensors.

        Args:
            videos: the path of a video, or a list of paths: the middle clip of each, see `Sampling`
                and `read_clip`; or RGB, uint8 [T, H, W, 3] or [B, T, H, W, 3], on any device.

        Raises:
            UserError: a file is no video, is damaged or shorter than a clip; a tensor of another
                type or of a size that does not fit; neither paths nor a tensor.
        """
        if isinstance(videos, Tensor):
            video = videos if videos.ndim == 5 else videos[None]
        else:
            video = torch.stack([self.read_clip(path) for path in _paths(videos)])
        self._check(video)
        return self.encode(video)

    def read_clip(self, path: str | os.PathLike) -> Tensor:
        """The middle clip of a video file, as it is encoded: uint8 [T, S, S, 3], on the CPU.

        Raises:
            UserError: see `__call__`.
        """
        return read_middle_clip(Path(path), self.sampling)

    @torch.no_grad()
    def encode(self, video: Tensor) -> Features:
        """Features of clips, uint8 [B, T, H, W, 3], of a size that fits."""
        video = video.to(self.device)
        grid = self.model.grid_of(video)
        tokens = encode_clips(self.model, video).float()
        return Features(tokens.view(len(video), -1, self.width), grid)

    def _check(self, video: Tensor) -> None:
        shape = list(video.shape)
        if video.ndim != 5 or shape[-1] != 3:
            raise UserError(
                f"video: found a tensor of shape {shape}, expected [T, H, W, 3] or "
                "[B, T, H, W, 3]; move the channels to the end with permute"
            )
        if video.dtype != torch.uint8:
            raise UserError(
                f"video: found {video.dtype}, expected torch.uint8, RGB from 0 to 255, which the "
                "encoder normalizes itself; pass the pixels as they were decoded"
            )
        embed, (frames, height, width) = self.model.patch_embed, shape[1:4]
        if not shape[0] or not frames or frames % embed.tubelet_size:
            raise UserError(
                f"video: found {shape[0]} clips of {frames} frames, expected at least one clip of "
                f"a multiple of {embed.tubelet_size} frames; pass another number of frames"
            )
        patch = embed.patch_size
        if not height or not width or height % patch or width % patch:
            raise UserError(
                f"video: found frames of {height} x {width} pixels, expected multiples of "
                f"{patch}, the side of a patch; {_CROPPED}"
            )
        table = self.model.grid
        if self.model.rotary_form is None:
            side, longest = table[1] * patch, table[0] * embed.tubelet_size
            if (height, width) != (side, side):
                raise UserError(
                    f"video: found frames of {height} x {width} pixels, expected {side} x {side}, "
                    f"the size of the encoder's position table; {_CROPPED}, or load the encoder "
                    "with another crop_size"
                )
            if frames > longest:
                raise UserError(
                    f"video: found clips of {frames} frames, expected at most {longest}, the "
                    "length of the encoder's position table; cut the clips, or load the encoder "
                    "with another num_frames"
                )


def _paths(videos: object) -> list[str | os.PathLike]:
    """One path or several, as a list."""
    several = isinstance(videos, Iterable) and not isinstance(videos, str | os.PathLike)
    paths = list(videos) if several else [videos]
    if not paths:
        raise UserError("videos: found none, expected at least one; name a video file")
    for found in paths:
        if not isinstance(found, str | os.PathLike):
            raise UserError(
                f"videos: found {'several of type ' * several}{type(found).__name__}, expected the "
                "path of a video, a list of paths, or one uint8 tensor; make a tensor with "
                "torch.from_numpy or torch.stack"
            )
    return paths
