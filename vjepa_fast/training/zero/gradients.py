"""Gradients, accumulated in fp32 and reduced over ranks while the backward pass still runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vjepa_fast.training.zero.shards import Bucket

IN_FLIGHT = 2  # buckets that a rank holds beside the one it fills, where it keeps no others


class GradientBuckets:
    """The fp32 gradients of a model, bucket by bucket.

    Each gradient is added to its bucket as the backward pass computes it, and freed. During the
    last backward pass of a step a bucket is sent when all of its gradients are there: always in the
    same order, that of a backward pass, so that all ranks agree whatever order their gradients come
    in. A bucket waits for nothing but the ones before it. Parameters that no gradient reaches count
    as zero, and `finish` sends their buckets.

    Each gradient is sent once. Without `keep` it is sent once for each backward pass, as ZeRO's
    stage 2 does it, and no rank has all gradients of its own at any time.

    Args:
        model: whose parameters are in the groups.
        groups: parameters of each group, and the buckets of its flat vector.
        slices: ranks that hold a slice of each bucket; 1: all gradients are reduced to all ranks.
        keep: whether earlier micro-batches of a step are accumulated before they are reduced.

    Attributes:
        shards: this rank's reduced gradients of each group after `finish`, fp32, with padding.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[tuple[Sequence[nn.Parameter], Sequence[Bucket]]],
        slices: int,
        keep: bool,
    ) -> None:
        self._world = dist.get_world_size()
        self._keep = keep or self._world == 1
        self._sends = False
        self.shards: list[Tensor] = []
        order = {id(p): i for i, p in enumerate(model.parameters())}
        found: list[tuple[int, _Filling]] = []
        for parameters, buckets in groups:
            length = sum(b.length for b in buckets)
            shard = torch.zeros(length, dtype=torch.float32, device=parameters[0].device)
            self.shards.append(shard)
            for bucket in buckets:
                own = shard[bucket.offset : bucket.offset + bucket.length]
                members = [parameters[i] for i in bucket.parameters]
                filling = _Filling(members, own, slices, self._keep)
                found.append((min(order[id(p)] for p in members), filling))
                for index, parameter in enumerate(members):
                    if parameter.requires_grad:
                        parameter.register_post_accumulate_grad_hook(
                            partial(self._take, filling, index)
                        )
        # A bucket is complete with the first of its parameters, the last that has its gradient.
        found.sort(key=lambda pair: -pair[0])
        self._in_order = [filling for _, filling in found]
        self._sent = len(self._in_order)

    def begin(self, first: bool, last: bool) -> None:
        """Before a backward pass. Collective without `keep`.

        Args:
            first, last: of its step.
        """
        if not first and not self._keep:
            self._send_rest()
        self._sends, self._sent = last or not self._keep, 0
        for filling in self._in_order:
            filling.begin(first)

    def finish(self) -> None:
        """After the last backward pass of a step: averages over ranks. Collective; on a GPU the
        stream waits, not the host."""
        self._send_rest()
        for filling in self._in_order:
            filling.wait()
        if self._world > 1:
            torch._foreach_div_(self.shards, self._world)

    def _take(self, filling: _Filling, index: int, parameter: nn.Parameter) -> None:
        filling.add(index, parameter.grad)
        parameter.grad = None
        if self._sends:
            while self._sent < len(self._in_order) and self._in_order[self._sent].complete:
                self._send()

    def _send_rest(self) -> None:
        while self._sent < len(self._in_order):
            self._send()

    def _send(self) -> None:
        self._in_order[self._sent].send()
        self._sent += 1
        if not self._keep and self._sent > IN_FLIGHT:
            self._in_order[self._sent - 1 - IN_FLIGHT].wait()


class _Filling:
    """A bucket while gradients come in.

    Args:
        parameters: that the bucket holds.
        own: where this rank's slice goes, reduced.
        slices, keep: see `GradientBuckets`.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], own: Tensor, slices: int, keep: bool
    ) -> None:
        self._own, self._slices, self._keep = own, slices, keep
        self._shapes = [p.shape for p in parameters]
        self._ends = list(accumulate(p.numel() for p in parameters))
        self._trained = [i for i, p in enumerate(parameters) if p.requires_grad]
        self._views: list[Tensor] = []
        self._missing: set[int] = set()  # of this backward pass
        self._written: set[int] = set()
        self._whole: Tensor | None = None
        if slices == 1:
            self._set_whole(own)
        elif keep:
            self._set_whole(own.new_zeros(slices * own.numel()))
        self._work: dist.Work | None = None
        self._take_over: Callable[[], object] | None = None  # once the work is done
        self._adds = False  # to what earlier micro-batches left in `own`

    @property
    def complete(self) -> bool:
        """Whether all gradients of this backward pass are there."""
        return not self._missing

    def begin(self, first: bool) -> None:
        """Before a backward pass; `first` of its step."""
        self._missing = set(self._trained)
        if first or not self._keep:
            self._written.clear()
        self._adds = not first and not self._keep

    def add(self, index: int, gradient: Tensor) -> None:
        """A parameter's gradient, in any dtype."""
        if index not in self._missing:
            raise RuntimeError(
                f"gradients: found a second one of a parameter of shape {gradient.shape} in a "
                "backward pass, expected one; call EngineTrainer.accumulate for a step"
            )
        self.wait()
        if self._whole is None:
            self._set_whole(self._own.new_empty(self._slices * self._own.numel()))
        if index in self._written:
            self._views[index].add_(gradient)
        else:
            self._views[index].copy_(gradient)
            self._written.add(index)
        self._missing.remove(index)

    def send(self) -> None:
        """Begin to reduce. Collective."""
        self.wait()
        if self._whole is None:
            self._set_whole(self._own.new_empty(self._slices * self._own.numel()))
        for index in set(range(len(self._views))) - self._written:
            self._views[index].zero_()
        if dist.get_world_size() > 1:
            self._work = self._reduce(self._whole)
        if not self._keep:
            self._whole, self._views = None, []

    def wait(self) -> None:
        """For the reduction that has begun, if one has; on a GPU the stream waits, not the host."""
        if self._work is not None:
            self._work.wait()
            if self._take_over is not None:
                self._take_over()
            self._work = self._take_over = None

    def _reduce(self, whole: Tensor) -> dist.Work:
        own, adds = self._own, self._adds
        if self._slices == 1:
            return dist.all_reduce(own, async_op=True)  # which is `whole`
        if own.device.type == "cpu":
            # gloo's reduce-scatter is an all-reduce, which sends twice the bytes
            received = torch.empty_like(whole)
            self._take_over = partial(_sum, own, received.view(self._slices, -1), adds)
            return dist.all_to_all_single(received, whole, async_op=True)
        reduced = torch.empty_like(own) if adds else own
        if adds:
            self._take_over = partial(own.add_, reduced)
        return dist.reduce_scatter_tensor(reduced, whole, async_op=True)

    def _set_whole(self, whole: Tensor) -> None:
        whole[self._ends[-1] :].zero_()
        self._whole = whole
        pieces = whole[: self._ends[-1]].tensor_split(self._ends[:-1])
        self._views = [p.view(s) for p, s in zip(pieces, self._shapes, strict=True)]


def _sum(own: Tensor, received: Tensor, adds: bool) -> None:
    """The sum of one slice from each rank, in the order of the ranks."""
    if adds:
        own.add_(received.sum(0))
    else:
        torch.sum(received, 0, out=own)
