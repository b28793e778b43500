"""The mask sampler in readable Python: what csrc/mask_sampler.cpp must give, bit for bit."""

import numpy as np

from vjepa_fast.masks.philox import (
    STREAM_BLOCK_PLACE,
    STREAM_BLOCK_SIZE,
    PhiloxSequence,
    substream,
)
from vjepa_fast.masks.sampler import MaskSampler
from vjepa_fast.masks.specs import Size

MAX_DRAWS = 10_000
"""A clip whose context is empty is drawn again, at most so often in all."""


class ReferenceSampler(MaskSampler):
    """`MaskSampler`'s readable twin: same arguments, same numbers, one thread, 100 times slower."""

    def _sample(self, step: int, ids: list[int], sizes: list[Size]) -> tuple[np.ndarray, ...]:
        sizes = sizes or [self._draw_block_size(index, step) for index in range(len(self.specs))]
        group = self.truncate_group if self.truncate == "batch" else 1
        drawn = sorted({first + i for first in _group_starts(ids, group) for i in range(group)})

        contexts, targets = [], []
        for index, spec in enumerate(self.specs):
            is_context = {clip: self._draw_context(index, sizes[index], clip) for clip in drawn}
            for clip in ids:
                (first,) = _group_starts([clip], group)
                counts = [int(is_context[first + i].sum()) for i in range(group)]
                keep = min(counts) if spec.max_keep is None else min(*counts, spec.max_keep)
                keep_target = is_context[clip].size - max(counts)
                contexts.append(np.flatnonzero(is_context[clip])[:keep])
                targets.append(np.flatnonzero(~is_context[clip])[:keep_target])
        return (*self._flatten(contexts), *self._flatten(targets), np.array(sizes, dtype=np.int64))

    def _draw_block_size(self, index: int, step: int) -> Size:
        random = PhiloxSequence(self.seed, substream(STREAM_BLOCK_SIZE, index), step)
        temporal, spatial, aspect = random.uniform(), random.uniform(), random.uniform()
        return self.specs[index].block_size(self.grid, temporal, spatial, aspect)

    def _draw_context(self, index: int, size: Size, sample_id: int) -> np.ndarray:
        """Draw the blocks' places until the context isn't empty: bool [N], raster order."""
        spec = self.specs[index]
        random = PhiloxSequence(self.seed, substream(STREAM_BLOCK_PLACE, index), sample_id)
        for _ in range(MAX_DRAWS):
            is_context = np.zeros(self.grid, dtype=bool)
            is_context[: spec.context_frames(self.grid)] = True
            for _ in range(spec.num_blocks):
                corner = [
                    random.bounded(whole - part + 1)
                    for whole, part in zip(self.grid, size, strict=True)
                ]
                block = tuple(
                    slice(low, low + part) for low, part in zip(corner, size, strict=True)
                )
                is_context[block] = False
            if is_context.any():
                return is_context.ravel()
        raise ValueError(
            f"found no context token for clip {sample_id} in {MAX_DRAWS} draws of mask spec "
            f"{index} ({spec.num_blocks} blocks of {size[0]}x{size[1]}x{size[2]} tokens), "
            "expected at least one, make its blocks smaller or fewer"
        )

    def _flatten(self, rows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        seqlens = np.array([len(row) for row in rows], dtype=np.int64)
        return np.concatenate(rows).astype(np.int64), seqlens.reshape(len(self.specs), -1)


def _group_starts(ids: list[int], group: int) -> set[int]:
    return {clip - clip % group for clip in ids}
