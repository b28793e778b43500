"""Augmentation of decoded clips by torchvision, the same for all frames of a clip.

Every random number is a function of (seed, sample id), of a mixture of the id of its first clip:
the same with any micro-batch, at any number of processes, and after a resume.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vjepa_fast.config.finetune.schema import AugmentConfig, RandAugmentConfig
from vjepa_fast.errors import UserError
from vjepa_fast.kernels.patchify import IMAGENET_MEAN, IMAGENET_STD
from vjepa_fast.masks.philox import STREAM_AUGMENT, STREAM_MIX, draw

_BINS = 101  # magnitudes 0, 0.1 … 10


def require_torchvision(config: AugmentConfig) -> ModuleType | None:
    """torchvision.transforms.v2; None where nothing of it is asked for.

    Raises:
        UserError: it is asked for but not installed.
    """
    asked = [
        name
        for name, value in (
            ("randaugment.operations", config.randaugment.operations),
            ("color_jitter", config.color_jitter),
            ("erasing", config.erasing),
            ("mixup", config.mixup),
            ("cutmix", config.cutmix),
        )
        if value
    ]
    if not asked:
        return None
    try:
        from torchvision.transforms import v2
    except (ImportError, RuntimeError) as error:  # RuntimeError: built for another torch
        raise UserError(
            f"augment.{asked[0]}: found that torchvision cannot be imported ({error}), expected "
            "the package; install it with pip install -c constraints.txt -e '.[finetune]', or set "
            f"augment.{', augment.'.join(asked)} to 0"
        ) from None
    return v2


class Augmenter:
    """RandAugment, color jitter and erasing of each clip, then mixup or cutmix of pairs of videos.

    Args:
        config: what is applied.
        num_classes: C.
        label_smoothing: share of each target that is spread over all classes.
        clips_per_video: consecutive clips that are of one video.
        seed: of all random numbers.

    Raises:
        UserError: see `require_torchvision`.
    """

    def __init__(
        self,
        config: AugmentConfig,
        num_classes: int,
        label_smoothing: float,
        clips_per_video: int,
        seed: int,
    ) -> None:
        self._v2 = require_torchvision(config)
        self._config, self._num_classes = config, num_classes
        self._smoothing, self._clips, self._seed = label_smoothing, clips_per_video, seed

    def __call__(
        self, video: Tensor, classes: Tensor, sample_ids: np.ndarray
    ) -> tuple[Tensor, Tensor]:
        """Augment a micro-batch of clips with consecutive sample ids.

        Args:
            video: uint8 [B, T, H, W, 3].
            classes: int64 [B], on the same device.
            sample_ids: int64 [B].

        Returns:
            uint8 [B, T, H, W, 3]; targets, fp32 [B, C], whose rows sum to 1.
        """
        targets = F.one_hot(classes, self._num_classes).float()
        targets = targets * (1 - self._smoothing) + self._smoothing / self._num_classes
        config = self._config
        if self._v2 is None:
            return video, targets
        clips = video.permute(0, 1, 4, 2, 3)  # [B, T, 3, H, W]
        if config.randaugment.operations or config.color_jitter or config.erasing:
            seeds = _seeds(self._seed, STREAM_AUGMENT, sample_ids)
            clips = torch.stack([self._clip(c, s) for c, s in zip(clips, seeds, strict=True)])
        if config.mixup or config.cutmix:
            size = 2 * self._clips
            seeds = _seeds(self._seed, STREAM_MIX, sample_ids[::size])
            parts = zip(clips.split(size), targets.split(size), seeds, strict=True)
            mixed = [self._mix(*part) for part in parts]
            clips, targets = (torch.cat(pieces) for pieces in zip(*mixed, strict=True))
        return clips.permute(0, 1, 3, 4, 2).contiguous(), targets

    def _clip(self, clip: Tensor, seed: int) -> Tensor:
        """Augment one clip, uint8 [T, 3, H, W]."""
        config, v2 = self._config, self._v2
        with _seeded(seed):
            clip = _rand_augment(v2, clip, config.randaugment)
            if jitter := config.color_jitter:
                clip = v2.ColorJitter(jitter, jitter, jitter)(clip)
            if config.erasing and torch.rand(()) < config.erasing:
                # The noise has the mean and the variance of normalized pixels.
                pixels = v2.functional.normalize(clip.float() / 255, IMAGENET_MEAN, IMAGENET_STD)
                pixels = v2.RandomErasing(1.0, value="random")(pixels)
                mean, std = (
                    pixels.new_tensor(x)[:, None, None] for x in (IMAGENET_MEAN, IMAGENET_STD)
                )
                clip = _to_uint8((pixels * std + mean) * 255)
        return clip

    def _mix(self, clips: Tensor, targets: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Mix the clips of two videos, uint8 [2 n, T, 3, H, W] and fp32 [2 n, C]."""
        from torchvision import tv_tensors

        config, v2 = self._config, self._v2
        # Alternately of the one and the other, since torchvision mixes each with the one before.
        order = torch.arange(len(clips)).view(2, -1).T.reshape(-1)
        with _seeded(seed):
            cut = (
                torch.rand(()) < config.switch if config.mixup and config.cutmix else config.cutmix
            )
            mixture = v2.CutMix(alpha=config.cutmix) if cut else v2.MixUp(alpha=config.mixup)
            pixels = clips[order] if cut else clips[order].float()
            pixels, own = mixture(tv_tensors.Video(pixels), targets[order])
        back = order.argsort()
        pixels = pixels.as_subclass(Tensor)[back]
        return pixels if cut else _to_uint8(pixels), own[back]


def _rand_augment(v2: ModuleType, clip: Tensor, config: RandAugmentConfig) -> Tensor:
    """Operations of RandAugment as timm numbers them: magnitude 0 to 10, each with probability 0.5,
    where torchvision applies all of them."""
    for _ in range(config.operations):
        if torch.rand(()) < 0.5:
            strength = config.magnitude + config.magnitude_std * torch.randn(()).item()
            magnitude = round(min(max(strength, 0.0), 10.0) * (_BINS - 1) / 10)
            clip = v2.RandAugment(1, magnitude, _BINS, interpolation="bilinear")(clip)
    return clip


def _to_uint8(pixels: Tensor) -> Tensor:
    return pixels.round().clamp(0, 255).to(torch.uint8)


def _seeds(seed: int, stream: int, sample_ids: np.ndarray) -> list[int]:
    """A seed of torch's generator for each sample id."""
    words = draw(seed, stream, sample_ids, 2).astype(np.int64)
    return (words[:, 0] << 31 ^ words[:, 1]).tolist()


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """A context in which torch's generator of the CPU, which torchvision draws from, is seeded."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
