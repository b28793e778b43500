"""Draws the masks of a batch; the work is done in csrc/mask_sampler.cpp."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from vjepa_fast.masks.batch import MaskBatch
from vjepa_fast.masks.specs import MultiBlock, Size, check_grid

try:
    from vjepa_fast.masks import _sampler
except ImportError as error:
    raise ImportError(
        "found no compiled mask sampler (vjepa_fast.masks._sampler) for this Python, expected the "
        "one that installing builds, install the package again: pip install -e ."
    ) from error

_END_OF_IDS = 2**62


class MaskSampler:
    """Masks as a pure function of (seed, step, sample id): the same for any batch split or threads.

    A block's size depends on (seed, spec, step), its places on (seed, spec, sample id).

    specs: one mask per spec and clip.
    grid: the clip's size in tokens (T', H', W').
    truncate: "batch" cuts every clip to the smallest context and the smallest target count of its
        truncation group, keeping the first tokens (parity with the published trainer); "none" keeps
        every token. A spec's max_keep cuts the context afterwards, never the target.
    truncate_group: sample id s belongs to group s // truncate_group. The whole group counts, also
        where a batch holds a part of it, so all of it must belong to one step.
    num_threads: 0 takes one per core.

    Raises ValueError for bad arguments, also for a spec with a drawable block size that leaves no
    context or no target wherever its blocks fall.
    """

    def __init__(
        self,
        specs: Sequence[MultiBlock],
        grid: Size = (8, 14, 14),
        seed: int = 0,
        truncate: Literal["batch", "none"] = "batch",
        truncate_group: int = 24,
        num_threads: int = 0,
    ) -> None:
        self.grid = check_grid(grid)
        self.specs = tuple(specs)
        if not self.specs or not all(isinstance(spec, MultiBlock) for spec in self.specs):
            raise ValueError(
                f"found mask specs {specs!r}, expected MultiBlock ones, give at least one"
            )
        for index, spec in enumerate(self.specs):
            try:
                spec.check(self.grid)
            except ValueError as error:
                raise ValueError(f"mask spec {index}: {error}") from error
        if truncate not in ("batch", "none"):
            raise ValueError(
                f"found truncate {truncate!r}, expected one of two, give 'batch' or 'none'"
            )
        self.seed = _integer("seed", seed, 0, 2**64)
        self.truncate = truncate
        self.truncate_group = _integer("truncate_group", truncate_group, 1, 2**31)
        self.num_threads = _integer("num_threads", num_threads, 0, 2**31)

    def sample(
        self, step: int, sample_ids: Sequence[int], block_sizes: Sequence[Size] | None = None
    ) -> MaskBatch:
        """The masks of these clips at this step, in the order given.

        block_sizes: one (t, h, w) per spec, used instead of drawn ones (to replay recorded masks).
        Raises ValueError for bad arguments and for a clip whose context stayed empty 10,000 times.
        """
        step = _integer("step", step, 0, 2**63)
        ids = self._sample_ids(sample_ids)
        sizes = [] if block_sizes is None else self._block_sizes(block_sizes)
        context, context_seqlens, target, target_seqlens, sizes = self._sample(step, ids, sizes)
        return MaskBatch(
            context_tokens=torch.from_numpy(context),
            context_seqlens=torch.from_numpy(context_seqlens),
            target_tokens=torch.from_numpy(target),
            target_seqlens=torch.from_numpy(target_seqlens),
            num_tokens=int(np.prod(self.grid)),
            block_sizes=torch.from_numpy(sizes),
        )

    def _sample(self, step: int, ids: list[int], sizes: list[Size]) -> tuple[np.ndarray, ...]:
        """Five int64 arrays: MaskBatch's tensors in order; without sizes they are drawn."""
        return _sampler.sample(
            specs=self.specs,
            grid=self.grid,
            seed=self.seed,
            step=step,
            sample_ids=ids,
            truncate_group=self.truncate_group if self.truncate == "batch" else 0,
            block_sizes=sizes,
            num_threads=self.num_threads,
        )

    def _sample_ids(self, sample_ids: Sequence[int]) -> list[int]:
        ids = np.asarray(sample_ids)
        if ids.ndim != 1 or ids.size == 0 or ids.dtype.kind not in "iu":
            raise ValueError(
                f"found sample ids {sample_ids!r}, expected a flat list of integers, "
                "give at least one"
            )
        if ids.min() < 0 or ids.max() >= _END_OF_IDS:
            raise ValueError(
                f"found sample ids in {ids.min()} .. {ids.max()}, expected 0 .. 2**62-1, "
                "give step * global_batch + position"
            )
        return ids.tolist()

    def _block_sizes(self, block_sizes: Sequence[Size]) -> list[Size]:
        sizes = np.asarray(block_sizes)
        if sizes.shape != (len(self.specs), 3) or sizes.dtype.kind not in "iu":
            raise ValueError(
                f"found block sizes of shape {list(sizes.shape)} and type {sizes.dtype}, expected "
                f"integers [{len(self.specs)}, 3], give one (t, h, w) per mask spec"
            )
        if (sizes < (1, 0, 0)).any() or (sizes > self.grid).any():
            raise ValueError(
                f"found block sizes {sizes.tolist()}, expected them to fit into the grid "
                f"{self.grid}, give sizes in tokens"
            )
        return [tuple(size) for size in sizes.tolist()]


def _integer(name: str, value: int, low: int, end: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not low <= value < end:
        raise ValueError(
            f"found {name} {value!r}, expected an integer in {low} .. {end - 1}, "
            f"give a {name} in that range"
        )
    return int(value)
