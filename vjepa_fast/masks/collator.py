"""A drop-in `collate_fn` with the arguments and return values of the public V-JEPA code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from multiprocessing import get_context
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch.utils.data import default_collate

from vjepa_fast.masks._checks import is_int, require_int
from vjepa_fast.masks.sampler import MaskSampler
from vjepa_fast.masks.specs import MultiBlock

_KEYS = tuple(field.name for field in fields(MultiBlock))


class MaskCollator:
    """Collates a batch and draws its masks.

    Each call takes the next number of a counter that all worker processes share, so no two batches
    have the same masks, for any number of workers and any start method. A batch's masks are a pure
    function of (seed, its number, its size), but with several workers it is a race which batch gets
    which number. A run that must be repeated exactly or resumed should draw its masks in the
    training loop: `MaskSampler.sample(step, sample_ids)`.

    Args:
        cfgs_mask: for each mask spec a dict of `MultiBlock`'s fields: num_blocks and spatial_scale,
            optionally temporal_scale, aspect_ratio, max_temporal_keep, max_keep.
        crop_size: pixels of a clip, (height, width) or one number for both.
        num_frames: frames of a clip.
        patch_size: pixels of a token, (height, width) or one number.
        tubelet_size: frames of a token.
        seed: not an argument of the public code; give each rank of a distributed run its own.

    Raises:
        ValueError: bad arguments.
    """

    def __init__(
        self,
        cfgs_mask: Sequence[Mapping[str, Any]],
        crop_size: int | tuple[int, int] = (224, 224),
        num_frames: int = 16,
        patch_size: int | tuple[int, int] = (16, 16),
        tubelet_size: int = 2,
        seed: int = 0,
    ) -> None:
        if not isinstance(cfgs_mask, Sequence):
            raise ValueError(
                f"cfgs_mask: found {cfgs_mask!r}, expected a list of dicts; give one for each mask"
            )
        self._specs = [_spec(index, config) for index, config in enumerate(cfgs_mask)]
        height, width = _pair("crop_size", crop_size)
        tall, wide = _pair("patch_size", patch_size)
        self._grid = (
            _divide("num_frames", num_frames, "tubelet_size", tubelet_size),
            _divide("crop_size", height, "patch_size", tall),
            _divide("crop_size", width, "patch_size", wide),
        )
        self._seed = require_int("seed", seed, 0, 2**32)
        self._samplers: dict[int, MaskSampler] = {}
        self._sampler(1)  # rejects impossible specs now
        # A lock of the "spawn" context can be sent to workers of any start method.
        self._counter = get_context("spawn").Value("q", 0)

    def step(self) -> None:
        """Advance the counter by one batch, as a call does.

        Without workers, one call per batch already drawn resumes a loader. With workers it does
        not: they draw ahead of the training loop.
        """
        self._next()

    def __call__(self, batch: list) -> tuple[Any, list[torch.Tensor], list[torch.Tensor]]:
        """Collate a batch of samples and draw its masks.

        Returns:
            the collated batch, context masks and target masks, for each spec int64 [B, K]. All
            clips are truncated to the smallest context and the smallest target count in the batch.
        """
        clips = len(batch)
        if clips == 0:
            raise ValueError("batch: found no samples, expected at least one; drop empty batches")
        collated = default_collate(batch)
        number = self._next()
        ids = np.arange(number * clips, (number + 1) * clips)
        return (collated, *self._sampler(clips).sample_rectangles(number, ids))

    def _next(self) -> int:
        with self._counter.get_lock():
            number = self._counter.value
            self._counter.value += 1
        return number

    def _sampler(self, clips: int) -> MaskSampler:
        """The sampler for batches of this size.

        Its seed depends on the size: otherwise the last, smaller batch of an epoch would have the
        sample ids, and so the block positions, of earlier clips.
        """
        if clips not in self._samplers:
            self._samplers[clips] = MaskSampler(
                self._specs,
                self._grid,
                seed=self._seed + (clips << 32),
                truncate_group=clips,
                num_threads=1,  # the workers are the threads
            )
        return self._samplers[clips]


def _spec(index: int, config: Mapping[str, Any]) -> MultiBlock:
    if not isinstance(config, Mapping):
        raise ValueError(
            f"cfgs_mask[{index}]: found {config!r}, expected a dict of {', '.join(_KEYS)}; give one"
        )
    unknown = [key for key in config if key not in _KEYS]
    missing = [key for key in ("num_blocks", "spatial_scale") if key not in config]
    if unknown or missing:
        found = f"the key {unknown[0]!r}" if unknown else f"no {missing[0]}"
        raise ValueError(
            f"cfgs_mask[{index}]: found {found}, expected num_blocks and spatial_scale and "
            f"optionally {', '.join(_KEYS[2:])}; {'drop' if unknown else 'add'} it"
        )
    try:
        return MultiBlock(**config)
    except ValueError as error:
        raise ValueError(f"cfgs_mask[{index}]: {error}") from error


def _pair(name: str, value: int | tuple[int, int]) -> tuple[int, int]:
    if isinstance(value, Integral):
        return value, value
    pair = tuple(value) if isinstance(value, tuple | list) else ()
    if len(pair) != 2:
        raise ValueError(f"{name}: found {value!r}, expected height and width; give two numbers")
    return pair


def _divide(name: str, size: int, part_name: str, part: int) -> int:
    for number in (size, part):
        if not is_int(number) or number < 1:
            raise ValueError(
                f"{name}, {part_name}: found {size!r} and {part!r}, expected positive integers; "
                "give sizes in pixels and frames"
            )
    if size % part:
        raise ValueError(
            f"{name}: found {size}, expected a multiple of {part_name} {part}; choose e.g. "
            f"{size - size % part or part}"
        )
    return int(size // part)
