"""The mask sampler in readable Python: the specification of csrc/, equal bit for bit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from vjepa_fast.masks.philox import (
    STREAM_BLOCK_POSITION,
    STREAM_BLOCK_SIZE,
    STREAM_KEPT_TOKENS,
    STREAM_MIXTURE,
    STREAM_TRUNCATE_CONTEXT,
    STREAM_TRUNCATE_TARGET,
    PhiloxSequence,
    substream,
)
from vjepa_fast.masks.sampler import MaskSampler, check_ids
from vjepa_fast.masks.specs import (
    Mixture,
    MultiBlock,
    RandomTube,
    Size,
    Variant,
    stream_part,
    variants,
)

MAX_DRAWS = 10_000
"""Draws of a clip whose context is empty, before that is an error."""


class ReferenceSampler(MaskSampler):
    """Python reference of `MaskSampler`: same arguments, same numbers, hundreds of times slower."""

    def sample_rectangles(
        self, step: int, sample_ids: Sequence[int]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """As `MaskSampler.sample_rectangles`."""
        masks, specs = self.sample(step, sample_ids), range(len(self.specs))
        return [masks.context(m) for m in specs], [masks.target(m) for m in specs]

    def _set_up(self) -> None:
        pass

    def _sample(
        self, step: int, ids: np.ndarray, sizes: np.ndarray | None
    ) -> tuple[np.ndarray, ...]:
        check_ids(ids)
        if sizes is None:
            sizes = np.array(self._draw_block_sizes(step), dtype=np.int64)
        group = 1 if self.truncate == "none" else self.truncate_group
        ids = ids.tolist()
        drawn = sorted({clip - clip % group + i for clip in ids for i in range(group)})

        contexts, targets = [], []
        for index in range(len(self.specs)):
            masks = {clip: self._draw_mask(index, sizes, clip) for clip in drawn}
            for clip in ids:
                first = clip - clip % group
                together = [masks[first + i] for i in range(group)]
                context, target = self._truncate(index, clip, masks[clip][0], together)
                contexts.append(context)
                targets.append(target)
        return (*self._flatten(contexts), *self._flatten(targets), sizes)

    def _draw_block_sizes(self, step: int) -> list[Size]:
        """One for each variant; zeros for variants without blocks."""
        sizes = []
        for index, spec in enumerate(self.specs):
            for number, variant in enumerate(variants(spec)):
                if not isinstance(variant, MultiBlock):
                    sizes.append((0, 0, 0))
                    continue
                stream = substream(STREAM_BLOCK_SIZE, stream_part(spec, index, number))
                random = PhiloxSequence(self.seed, stream, step)
                draws = random.uniform(), random.uniform(), random.uniform()
                sizes.append(variant.block_size(self.grid, *draws))
        return sizes

    def _draw_mask(
        self, index: int, sizes: np.ndarray, sample_id: int
    ) -> tuple[np.ndarray, int | None]:
        """Context of a clip under a spec, bool [N] in raster order, and max_keep."""
        spec, number = self.specs[index], 0
        if isinstance(spec, Mixture):
            random = PhiloxSequence(self.seed, substream(STREAM_MIXTURE, index), sample_id)
            draw, last = random.uniform(), len(spec.specs) - 1
            number = next((i for i, end in enumerate(spec.cumulative()) if draw < end), last)
        variant, part = variants(spec)[number], stream_part(spec, index, number)
        if isinstance(variant, MultiBlock):
            row = number + sum(len(variants(before)) for before in self.specs[:index])
            size = tuple(sizes[row].tolist())
            return self._draw_blocks(index, variant, part, size, sample_id), variant.max_keep
        return self._draw_kept(variant, part, sample_id), None

    def _draw_blocks(
        self, index: int, spec: MultiBlock, part: int, size: Size, sample_id: int
    ) -> np.ndarray:
        """Draw positions of the blocks until the context isn't empty."""
        random = PhiloxSequence(self.seed, substream(STREAM_BLOCK_POSITION, part), sample_id)
        for _ in range(MAX_DRAWS):
            is_context = np.zeros(self.grid, dtype=bool)
            is_context[: spec.context_frames(self.grid)] = True
            for _ in range(spec.num_blocks):
                corner = [
                    random.bounded(whole - side + 1)
                    for whole, side in zip(self.grid, size, strict=True)
                ]
                block = tuple(
                    slice(low, low + side) for low, side in zip(corner, size, strict=True)
                )
                is_context[block] = False
            if is_context.any():
                return is_context.ravel()
        raise ValueError(
            f"found no context token for clip {sample_id} in {MAX_DRAWS} draws of mask spec "
            f"{index} ({spec.num_blocks} blocks of {size[0]}x{size[1]}x{size[2]} tokens), "
            "expected at least one; make its blocks smaller or fewer"
        )

    def _draw_kept(self, spec: Variant, part: int, sample_id: int) -> np.ndarray:
        """Context of a RandomTube or of RandomTokens."""
        random = PhiloxSequence(self.seed, substream(STREAM_KEPT_TOKENS, part), sample_id)
        time, height, width = self.grid
        if isinstance(spec, RandomTube):
            frame = choose_subset(random, height * width, spec.num_kept(self.grid))
            return np.tile(frame, time)
        return choose_subset(random, time * height * width, spec.num_kept(self.grid))

    def _truncate(
        self,
        index: int,
        clip: int,
        is_context: np.ndarray,
        group: list[tuple[np.ndarray, int | None]],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Context and target tokens of a clip, given the masks of its truncation group."""
        num_tokens = is_context.size
        keep = min(min(int(mask.sum()), cap or num_tokens) for mask, cap in group)
        keep_target = min(int((~mask).sum()) for mask, _ in group)
        if self.round_to:
            keep = keep - keep % self.round_to or keep
            keep_target = keep_target - keep_target % self.round_to or keep_target
        context = np.flatnonzero(is_context)
        target = np.flatnonzero(~is_context)
        context = self._truncate_tokens(STREAM_TRUNCATE_CONTEXT, index, clip, context, keep)
        target = self._truncate_tokens(STREAM_TRUNCATE_TARGET, index, clip, target, keep_target)
        if self.complement == "target":
            target = np.setdiff1d(np.arange(num_tokens), context)
        if self.complement == "context":
            context = np.setdiff1d(np.arange(num_tokens), target)
        return context, target

    def _truncate_tokens(
        self, stream: int, index: int, clip: int, tokens: np.ndarray, length: int
    ) -> np.ndarray:
        if self.truncate != "batch-random" or length == len(tokens):
            return tokens[:length]
        random = PhiloxSequence(self.seed, substream(stream, index), clip)
        return tokens[choose_subset(random, len(tokens), length)]

    def _flatten(self, rows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens, lengths [M, B] and offsets."""
        seqlens = np.array([len(row) for row in rows], dtype=np.int64)
        offsets = np.concatenate([[0], seqlens.cumsum()]).astype(np.int32)
        tokens = np.concatenate(rows).astype(np.int64)
        return tokens, seqlens.reshape(len(self.specs), -1), offsets


def choose_subset(random: PhiloxSequence, count: int, chosen: int) -> np.ndarray:
    """A uniformly random subset of `chosen` out of `count` as bool [count].

    Floyd's algorithm (Bentley, "Programming pearls: a sample of brilliance", CACM 1987), drawn
    through the smaller of the subset and its complement.
    """
    drawn: set[int] = set()
    fewer = min(chosen, count - chosen)
    for last in range(count - fewer, count):
        value = random.bounded(last + 1)
        drawn.add(last if value in drawn else value)
    is_drawn = np.isin(np.arange(count), list(drawn))
    return is_drawn if fewer == chosen else ~is_drawn
