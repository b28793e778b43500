"""Draws the masks of a batch: checks arguments and calls csrc/mask_sampler.cpp."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from vjepa_fast.masks._checks import require_int
from vjepa_fast.masks.batch import MaskBatch
from vjepa_fast.masks.specs import (
    MaskSpec,
    Mixture,
    MultiBlock,
    RandomTube,
    Size,
    Variant,
    check_grid,
    stream_part,
    variants,
)

try:
    from vjepa_fast.masks import _sampler
except ImportError as error:
    raise ImportError(
        "vjepa_fast.masks._sampler: found no compiled extension for this Python, expected the one "
        "that installing builds; install the package again: pip install -e ."
    ) from error

# Of csrc/bindings.cpp: what `git pull` changes there is not there until it is compiled.
INTERFACE = 1
if (_found := getattr(_sampler, "INTERFACE", 0)) != INTERFACE:
    raise ImportError(
        f"{_sampler.__name__}: found version {_found} of the compiled extension, expected "
        f"{INTERFACE}; build it again with pip install -e ."
    )

TRUNCATE = ("batch", "batch-random", "none")
COMPLEMENT = ("target", "context", None)


class MaskSampler:
    """Masks as a pure function of (seed, step, sample id), for any batch split and any threads.

    A block's size depends on (seed, spec, step), everything else on (seed, spec, sample id).

    Args:
        specs: every clip is masked once by each spec; a `Mixture` chooses one of several per clip.
        grid: size of a clip in tokens (T', H', W'); T' = 1 for images.
        seed: 0 .. 2**64 - 1.
        truncate: "batch" truncates every clip to the smallest context and the smallest target count
            of its truncation group and keeps the first tokens (as the published trainer);
            "batch-random" keeps a random subset of that size; "none" leaves each clip alone. A
            spec's max_keep (context only) and round_to apply in any case.
        truncate_group: sample id s belongs to group s // truncate_group. Lengths depend on the
            whole group even if a batch has only a part of it, so a group must not span steps.
        num_threads: 0 is one per core.
        round_to: lengths are rounded down to a multiple of it (lengths below it stay), for few
            distinct shapes; None leaves them.
        complement: "target" makes every token that is not context after truncation a target;
            "context" makes every token that is not target context (then a clip's two sets fill it,
            as in V-JEPA 2, arXiv 2506.09985); None drops truncated tokens.

    Raises:
        ValueError: bad arguments, including a spec that can draw a block size which leaves no
            context or no target wherever its blocks are.
    """

    def __init__(
        self,
        specs: Sequence[MaskSpec],
        grid: Size = (8, 14, 14),
        seed: int = 0,
        truncate: Literal["batch", "batch-random", "none"] = "batch",
        truncate_group: int = 24,
        num_threads: int = 0,
        round_to: int | None = None,
        complement: Literal["target", "context"] | None = None,
    ) -> None:
        self.grid = check_grid(grid)
        self._num_tokens = math.prod(self.grid)
        self.specs = tuple(specs) if isinstance(specs, Sequence) else ()
        if not 1 <= len(self.specs) <= 2**12 or not all(
            isinstance(spec, MaskSpec) for spec in self.specs
        ):
            raise ValueError(
                f"specs: found {specs!r}, expected MultiBlock, RandomTube, RandomTokens or Mixture "
                "specs; give 1 to 4096 of them"
            )
        for index, spec in enumerate(self.specs):
            try:
                spec.check(self.grid)
            except ValueError as error:
                raise ValueError(f"specs[{index}]: {error}") from error
        _check_choice("truncate", truncate, TRUNCATE)
        _check_choice("complement", complement, COMPLEMENT)
        self.seed = require_int("seed", seed, 0, 2**64)
        self.truncate = truncate
        self.truncate_group = require_int("truncate_group", truncate_group, 1, 2**31)
        self.num_threads = require_int("num_threads", num_threads, 0, 2**31)
        self.round_to = None if round_to is None else require_int("round_to", round_to, 1, 2**31)
        self.complement = complement
        if complement == "context":
            self._check_unlimited_context()
        self._set_up()

    def __reduce__(self) -> tuple:
        options = (self.truncate, self.truncate_group, self.num_threads)
        more = (self.round_to, self.complement)
        return type(self), (self.specs, self.grid, self.seed, *options, *more)

    def sample(
        self, step: int, sample_ids: Sequence[int], block_sizes: Sequence[Size] | None = None
    ) -> MaskBatch:
        """The masks of these clips at this step, in the order given.

        Args:
            step: 0 .. 2**63 - 1.
            sample_ids: [B], each 0 .. 2**62 - 1.
            block_sizes: one (t, h, w) per variant (see `MaskBatch`) instead of drawn ones, to
                replay recorded masks.

        Raises:
            ValueError: bad arguments; 2**31 tokens or more in one call; a clip whose context was
                empty in 10,000 draws.
        """
        step = require_int("step", step, 0, 2**63)
        ids = self._sample_ids(sample_ids)
        sizes = None if block_sizes is None else self._block_sizes(block_sizes)
        context, context_seqlens, context_cu, target, target_seqlens, target_cu, used = map(
            torch.from_numpy, self._sample(step, ids, sizes)
        )
        return MaskBatch(
            context_tokens=context,
            context_seqlens=context_seqlens,
            context_cu_seqlens=context_cu,
            target_tokens=target,
            target_seqlens=target_seqlens,
            target_cu_seqlens=target_cu,
            num_tokens=self._num_tokens,
            block_sizes=used,
        )

    def sample_rectangles(
        self, step: int, sample_ids: Sequence[int]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Context and target tokens of `sample` as one int64 [B, K] for each spec, and no more.

        The same as `MaskBatch.context` and `MaskBatch.target` of every spec, in half the time.

        Raises:
            ValueError: as `sample`; clips of one spec with different numbers of tokens.
        """
        step = require_int("step", step, 0, 2**63)
        contexts, targets = self._sampler.sample_rectangles(step, self._sample_ids(sample_ids))
        return [*map(torch.from_numpy, contexts)], [*map(torch.from_numpy, targets)]

    def _set_up(self) -> None:
        self._sampler = _sampler.Sampler(
            specs=[_spec_fields(spec, index, self.grid) for index, spec in enumerate(self.specs)],
            grid=self.grid,
            seed=self.seed,
            truncate=self.truncate,
            truncate_group=self.truncate_group,
            round_to=self.round_to or 1,
            complement=self.complement or "",
            num_threads=self.num_threads,
        )

    def _sample(
        self, step: int, ids: np.ndarray, sizes: np.ndarray | None
    ) -> tuple[np.ndarray, ...]:
        """MaskBatch's arrays in order; sizes are drawn unless given."""
        return self._sampler.sample(step, ids, sizes)

    def _sample_ids(self, sample_ids: Sequence[int]) -> np.ndarray:
        ids = _array(sample_ids)
        if ids.ndim != 1 or ids.size == 0 or ids.dtype.kind not in "iu":
            raise ValueError(
                f"sample ids: found {_short(sample_ids)}, expected a flat list of integers; "
                "give at least one"
            )
        if ids.dtype == np.uint64:  # the cast could wrap; other types are checked in C++
            check_ids(ids)
        return ids.astype(np.int64)  # a copy: the GIL is released

    def _block_sizes(self, block_sizes: Sequence[Size]) -> np.ndarray:
        sizes = _array(block_sizes)
        flat = [variant for spec in self.specs for variant in variants(spec)]
        if sizes.shape != (len(flat), 3) or sizes.dtype.kind not in "iu":
            raise ValueError(
                f"block sizes: found {_short(block_sizes)}, expected integers [{len(flat)}, 3]; "
                "give one (t, h, w) per mask spec"
            )
        least, most = np.array([self._side_limits(variant) for variant in flat]).swapaxes(0, 1)
        if (sizes < least).any() or (sizes > most).any():
            raise ValueError(
                f"block sizes: found {sizes.tolist()}, expected sides of at least 1 within the "
                f"grid {self.grid}, and 0 for specs without blocks; give sizes in tokens"
            )
        return sizes.astype(np.int64)

    def _side_limits(self, variant: Variant) -> tuple[Size, Size]:
        """The smallest and the largest (t, h, w) that may be replayed for a variant."""
        if not isinstance(variant, MultiBlock):
            return (0, 0, 0), (0, 0, 0)
        # Barred frames are targets even if a block has no tokens.
        side = 0 if variant.context_frames(self.grid) < self.grid[0] else 1
        return (1, side, side), self.grid

    def _check_unlimited_context(self) -> None:
        for index, spec in enumerate(self.specs):
            for variant in variants(spec):
                if isinstance(variant, MultiBlock) and (
                    variant.max_keep is not None or variant.context_frames(self.grid) < self.grid[0]
                ):
                    raise ValueError(
                        f"complement: found 'context' and a limit on the context of mask spec "
                        f"{index}, expected no max_keep and no barred frames; "
                        "give complement 'target' or drop the limit"
                    )


def check_ids(ids: np.ndarray) -> None:
    """Raise ValueError for sample ids outside 0 .. 2**62 - 1, as csrc/bindings.cpp does."""
    if ids.min() < 0 or ids.max() >= 2**62:
        raise ValueError(
            f"sample ids: found {ids.min()} .. {ids.max()}, expected 0 .. 2**62-1; "
            "give step * global_batch + position"
        )


def _spec_fields(spec: MaskSpec, index: int, grid: Size) -> tuple[list[float], list[dict]]:
    """A spec as the C++ sampler takes it: cumulative probabilities and fields of its variants."""
    cumulative = spec.cumulative() if isinstance(spec, Mixture) else [1.0]
    return cumulative, [
        _fields(variant, stream_part(spec, index, number), grid)
        for number, variant in enumerate(variants(spec))
    ]


def _fields(variant: Variant, part: int, grid: Size) -> dict:
    if isinstance(variant, MultiBlock):
        fields = vars(variant) | {"context_frames": variant.context_frames(grid)}
        return fields | {"kind": "blocks", "part": part}
    return {
        "kind": "tubes" if isinstance(variant, RandomTube) else "tokens",
        "part": part,
        "num_kept": variant.num_kept(grid),
        "context_frames": grid[0],
        "max_keep": None,
    }


def _array(value: object) -> np.ndarray:
    """The argument as an array; one of objects, which every check rejects, if it is not one."""
    try:
        return np.asarray(value)
    except (TypeError, ValueError):  # rows of unequal length; a tensor on a GPU
        return np.array(None)


def _short(value: object) -> str:
    return " ".join(reprlib.repr(value).split())


def _check_choice(name: str, value: object, choices: tuple[str | None, ...]) -> None:
    if value not in choices:
        raise ValueError(
            f"{name}: found {value!r}, expected one of {', '.join(map(repr, choices))}; "
            "give one of them"
        )
