"""Draws the masks of a batch; the work is done in csrc/mask_sampler.cpp."""

import math
import reprlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from vjepa_fast.masks.batch import MaskBatch, MaskBuffers
from vjepa_fast.masks.specs import MultiBlock, Size, check_grid, is_int
from vjepa_fast.masks.strategies import (
    MaskSpec,
    Mixture,
    RandomTube,
    Strategy,
    part,
    strategies,
)

try:
    from vjepa_fast.masks import _sampler
except ImportError as error:
    raise ImportError(
        "found no compiled mask sampler (vjepa_fast.masks._sampler) for this Python, expected the "
        "one that installing builds, install the package again: pip install -e ."
    ) from error

TRUNCATE = ("batch", "batch-random", "none")
COMPLEMENT = ("target", "context", None)


class MaskSampler:
    """Masks as a pure function of (seed, step, sample id): the same for any batch split or threads.

    A block's size depends on (seed, spec, step), everything else on (seed, spec, sample id).

    specs: one mask per spec and clip; a `Mixture` chooses among several for each clip.
    grid: the clip's size in tokens (T', H', W'); T' = 1 for images.
    truncate: "batch" cuts every clip to the smallest context and the smallest target count of its
        truncation group, keeping the first tokens (parity with the published trainer);
        "batch-random" cuts as far, but keeps a random subset; "none" looks at each clip alone. A
        spec's max_keep (of the context, never the target) and round_to cut under any of them.
    truncate_group: sample id s belongs to group s // truncate_group. The whole group counts, also
        where a batch holds a part of it, so all of it must belong to one step.
    round_to: lengths are cut down to a multiple of it (shorter ones stay), so that few shapes come
        up; None leaves them.
    complement: "target" makes every token that is not context, after cutting, a target; "context"
        makes every token that is not a target context (so that a clip's two sets fill it, as in
        V-JEPA 2, arXiv 2506.09985); None leaves out what was cut.
    num_threads: 0 takes one per core.

    Raises ValueError for bad arguments, also for a spec with a drawable block size that leaves no
    context or no target wherever its blocks fall.
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
                f"found mask specs {specs!r}, expected MultiBlock, RandomTube, RandomTokens or "
                "Mixture ones, give 1 to 4096 of them"
            )
        for index, spec in enumerate(self.specs):
            try:
                spec.check(self.grid)
            except ValueError as error:
                raise ValueError(f"mask spec {index}: {error}") from error
        _check_choice("truncate", truncate, TRUNCATE)
        _check_choice("complement", complement, COMPLEMENT)
        self.seed = _integer("seed", seed, 0, 2**64)
        self.truncate = truncate
        self.truncate_group = _integer("truncate_group", truncate_group, 1, 2**31)
        self.num_threads = _integer("num_threads", num_threads, 0, 2**31)
        self.round_to = None if round_to is None else _integer("round_to", round_to, 1, 2**31)
        self.complement = complement
        if complement == "context":
            self._check_unlimited_context()
        self._set_up()

    def __reduce__(self) -> tuple:
        options = (self.truncate, self.truncate_group, self.num_threads)
        more = (self.round_to, self.complement)
        return type(self), (self.specs, self.grid, self.seed, *options, *more)

    def sample(
        self,
        step: int,
        sample_ids: Sequence[int],
        block_sizes: Sequence[Size] | None = None,
        out: MaskBuffers | None = None,
    ) -> MaskBatch:
        """The masks of these clips at this step, in the order given.

        block_sizes: one (t, h, w) per strategy (see MaskBatch), used instead of drawn ones (to
            replay recorded masks).
        out: memory from `buffers` to write the tokens into; the result's tokens are views of it,
            which the next call with the same memory overwrites.
        Raises ValueError for bad arguments, too little room, 2**31 tokens or more in one call, and
        a clip whose context stayed empty 10,000 times.
        """
        step = _integer("step", step, 0, 2**63)
        ids = self._sample_ids(sample_ids)
        sizes = None if block_sizes is None else self._block_sizes(block_sizes)
        if out is not None and not isinstance(out, MaskBuffers):
            raise ValueError(
                f"found mask buffers {out!r}, expected MaskBuffers, give what buffers returns"
            )
        context, context_seqlens, context_cu, target, target_seqlens, target_cu, used = (
            self._sample(step, ids, sizes, out)
        )
        if out is None:
            context_tokens, target_tokens = torch.from_numpy(context), torch.from_numpy(target)
        else:
            context_tokens = out.context_tokens[: int(context_cu[-1])]
            target_tokens = out.target_tokens[: int(target_cu[-1])]
        return MaskBatch(
            context_tokens=context_tokens,
            context_seqlens=torch.from_numpy(context_seqlens),
            context_cu_seqlens=torch.from_numpy(context_cu),
            target_tokens=target_tokens,
            target_seqlens=torch.from_numpy(target_seqlens),
            target_cu_seqlens=torch.from_numpy(target_cu),
            num_tokens=self._num_tokens,
            block_sizes=torch.from_numpy(used),
        )

    def buffers(
        self, clips: int, dtype: torch.dtype = torch.int32, pin_memory: bool = False
    ) -> MaskBuffers:
        """Memory for `sample`'s `out` that any masks of up to `clips` clips fit into.

        dtype: torch.int32 or torch.int64. pin_memory: page-locked, for copies to a GPU that overlap
        with its work. Raises ValueError for bad arguments.
        """
        clips = _integer("clips", clips, 1, 2**31)
        return MaskBuffers.allocate(len(self.specs) * clips * self._num_tokens, dtype, pin_memory)

    def _set_up(self) -> None:
        self._sampler = _sampler.Sampler(
            specs=[_choices(spec, index, self.grid) for index, spec in enumerate(self.specs)],
            grid=self.grid,
            seed=self.seed,
            truncate=self.truncate,
            truncate_group=self.truncate_group,
            round_to=self.round_to or 1,
            complement=self.complement or "",
            num_threads=self.num_threads,
        )

    def _sample(
        self, step: int, ids: np.ndarray, sizes: np.ndarray | None, out: MaskBuffers | None
    ) -> tuple[np.ndarray, ...]:
        """MaskBatch's arrays in order; without sizes they are drawn."""
        if out is None:
            return self._sampler.sample(step, ids, sizes, None, None)
        # Taken anew each time: sharing a tensor with another process moves its memory.
        rooms = out.context_tokens.numpy(), out.target_tokens.numpy()
        return self._sampler.sample(step, ids, sizes, *rooms)

    def _sample_ids(self, sample_ids: Sequence[int]) -> np.ndarray:
        ids = _array(sample_ids)
        if ids.ndim != 1 or ids.size == 0 or ids.dtype.kind not in "iu":
            raise ValueError(
                f"found sample ids {_short(sample_ids)}, expected a flat list of integers, "
                "give at least one"
            )
        if ids.dtype == np.uint64:  # might wrap; others are checked where they are read
            check_ids(ids)
        return ids.astype(np.int64)  # a copy, that nobody changes while the GIL is released

    def _block_sizes(self, block_sizes: Sequence[Size]) -> np.ndarray:
        sizes = _array(block_sizes)
        choices = [choice for spec in self.specs for choice in strategies(spec)]
        if sizes.shape != (len(choices), 3) or sizes.dtype.kind not in "iu":
            raise ValueError(
                f"found block sizes {_short(block_sizes)}, expected integers [{len(choices)}, 3], "
                "give one (t, h, w) per mask spec"
            )
        least, most = np.array([self._side_limits(choice) for choice in choices]).swapaxes(0, 1)
        if (sizes < least).any() or (sizes > most).any():
            raise ValueError(
                f"found block sizes {sizes.tolist()}, expected sides of at least 1 that fit into "
                f"the grid {self.grid}, and 0 for specs without blocks, give sizes in tokens"
            )
        return sizes.astype(np.int64)

    def _side_limits(self, choice: Strategy) -> tuple[Size, Size]:
        """The smallest and the largest (t, h, w) that may be replayed for a strategy."""
        if not isinstance(choice, MultiBlock):
            return (0, 0, 0), (0, 0, 0)
        # Frames that are barred from the context are targets even where a block has no tokens.
        side = 0 if choice.context_frames(self.grid) < self.grid[0] else 1
        return (1, side, side), self.grid

    def _check_unlimited_context(self) -> None:
        for index, spec in enumerate(self.specs):
            for choice in strategies(spec):
                if isinstance(choice, MultiBlock) and (
                    choice.max_keep is not None or choice.context_frames(self.grid) < self.grid[0]
                ):
                    raise ValueError(
                        f"found complement 'context' and a limit on the context of mask spec "
                        f"{index}, expected no max_keep and no barred frames, "
                        "give complement 'target' or drop the limit"
                    )


def check_ids(ids: np.ndarray) -> None:
    """Raise ValueError for sample ids outside 0 .. 2**62-1, as csrc/bindings.cpp does."""
    if ids.min() < 0 or ids.max() >= 2**62:
        raise ValueError(
            f"found sample ids in {ids.min()} .. {ids.max()}, expected 0 .. 2**62-1, "
            "give step * global_batch + position"
        )


def _choices(spec: MaskSpec, index: int, grid: Size) -> tuple[list[float], list[dict]]:
    """A spec as the C++ sampler takes it: cumulative shares and strategies."""
    shares = spec.cumulative() if isinstance(spec, Mixture) else [1.0]
    return shares, [
        _fields(choice, part(spec, index, number), grid)
        for number, choice in enumerate(strategies(spec))
    ]


def _fields(strategy: Strategy, part: int, grid: Size) -> dict:
    if isinstance(strategy, MultiBlock):
        fields = vars(strategy) | {"context_frames": strategy.context_frames(grid)}
        return fields | {"kind": "blocks", "part": part}
    return {
        "kind": "tubes" if isinstance(strategy, RandomTube) else "tokens",
        "part": part,
        "num_kept": strategy.num_kept(grid),
        "context_frames": grid[0],
        "max_keep": None,
    }


def _array(value: object) -> np.ndarray:
    """What a user gave as an array: one of objects, which every check refuses, if it is none."""
    try:
        return np.asarray(value)
    except (TypeError, ValueError):  # rows of unequal length; a tensor on a GPU
        return np.array(None)


def _short(value: object) -> str:
    return " ".join(reprlib.repr(value).split())


def _check_choice(name: str, value: object, choices: tuple[str | None, ...]) -> None:
    if value not in choices:
        raise ValueError(
            f"found {name} {value!r}, expected one of {', '.join(map(repr, choices))}, "
            "give one of them"
        )


def _integer(name: str, value: int, low: int, end: int) -> int:
    if not is_int(value) or not low <= value < end:
        raise ValueError(
            f"found {name} {value!r}, expected an integer in {low} .. {end - 1}, "
            f"give a {name} in that range"
        )
    return int(value)
