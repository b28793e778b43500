"""Weights that are gathered from the shards of all ranks while the network already runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vjepa_fast.training.zero.shards import Bucket, layout_of


@dataclass
class _Gathered:
    """A bucket of weights on this rank.

    Attributes:
        whole: with padding; the parameters are views of it.
        own: this rank's slice of it.
        names: of its parameters.
        work: the all-gather that nothing has waited for yet.
    """

    whole: Tensor
    own: Tensor
    names: list[str]
    work: dist.Work | None = field(default=None)

    def wait(self) -> None:
        """On a GPU the stream waits, not the host."""
        if self.work is not None:
            self.work.wait()
            self.work = None


class GatheredWeights:
    """The parameters of a network as views of buckets, which are gathered in the order of use.

    `start` begins an all-gather of every bucket, in the order of the model's parameters. A forward
    pass waits for each bucket when it first needs it: at the blocks, which are the elements of a
    `ModuleList`, and outside of them at the modules that own parameters and at these modules'
    parents (a convolution may only hold the weight that its parent uses). Waiting is in hooks of
    `nn.Module.__call__`, so a compiled forward does not contain it. Whoever reads the weights
    otherwise calls `wait` first.

    Args:
        model: the network.
        groups: parameters of each group, and the buckets of its flat vector.
        slices: ranks that hold a slice of each bucket; 1: nothing is gathered.
        rank: of this process among them.
        dtype: of the weights.

    Attributes:
        buffers: of each group, all of its buckets; zero where padding is.
        own: of each group, this rank's slice of each bucket. Written before `start`.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[tuple[Sequence[nn.Parameter], Sequence[Bucket]]],
        slices: int,
        rank: int,
        dtype: torch.dtype,
    ) -> None:
        self._gathers = slices > 1
        order = {id(p): i for i, p in enumerate(model.parameters())}
        names = {id(p): name for name, p in model.named_parameters()}
        self.buffers: list[Tensor] = []
        self.own: list[list[Tensor]] = []
        found: list[tuple[int, _Gathered]] = []
        holding: dict[str, _Gathered] = {}
        for parameters, buckets in groups:
            length = slices * sum(b.length for b in buckets)
            buffer = torch.zeros(length, dtype=dtype, device=parameters[0].device)
            self.buffers.append(buffer)
            self.own.append([])
            for bucket in buckets:
                start = slices * bucket.offset
                whole = buffer[start : start + slices * bucket.length]
                own = whole[rank * bucket.length : (rank + 1) * bucket.length]
                members = [parameters[i] for i in bucket.parameters]
                gathered = _Gathered(whole, own, [names[id(p)] for p in members])
                self.own[-1].append(own)
                found.append((min(order[id(p)] for p in members), gathered))
                holding |= dict.fromkeys(gathered.names, gathered)
                _make_views(members, whole)
        found.sort(key=lambda pair: pair[0])
        self._in_order = [gathered for _, gathered in found]
        if self._gathers:
            self._wait_in_hooks(model, holding)

    @property
    def pending(self) -> list[str]:
        """Names of the parameters whose all-gather nothing has waited for yet."""
        return [name for g in self._in_order if g.work is not None for name in g.names]

    def start(self) -> None:
        """Begin to gather what all ranks have in `own`. Collective."""
        if self._gathers:
            for gathered in self._in_order:
                gathered.work = dist.all_gather_into_tensor(
                    gathered.whole, gathered.own, async_op=True
                )

    def wait(self) -> None:
        """Wait for all buckets; on a GPU the stream waits, not the host."""
        for gathered in self._in_order:
            gathered.wait()

    def _wait_in_hooks(self, model: nn.Module, holding: dict[str, _Gathered]) -> None:
        waiting: dict[str, list[_Gathered]] = {}
        for name, gathered in holding.items():
            for module in _users(model, name):
                waiting.setdefault(module, []).append(gathered)
        for name, all_gathered in waiting.items():
            distinct = list({id(g): g for g in all_gathered}.values())
            model.get_submodule(name).register_forward_pre_hook(partial(_wait_for, distinct))


class SortedWeights:
    """The parameters of a network, of which each rank holds a slice of every parameter (stage 3).

    Otherwise as `GatheredWeights`. There is one all-gather for each group, since one for each
    parameter would take longer, and the forward pass waits for all of them at its start: then the
    slices are put in order.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[tuple[Sequence[nn.Parameter], Sequence[Bucket]]],
        slices: int,
        rank: int,
        dtype: torch.dtype,
    ) -> None:
        self.buffers: list[Tensor] = []
        self.own: list[list[Tensor]] = []
        self._gathered: list[Tensor] = []
        self._works: list[dist.Work] = []
        self._to: list[Tensor] = []
        self._from: list[Tensor] = []
        for parameters, buckets in groups:
            device, length = parameters[0].device, sum(b.length for b in buckets)
            buffer = torch.zeros(sum(b.count for b in buckets), dtype=dtype, device=device)
            _make_views(parameters, buffer)
            gathered = torch.zeros(slices * length, dtype=dtype, device=device)
            self.buffers.append(buffer)
            self.own.append([gathered[rank * length : (rank + 1) * length]])
            self._gathered.append(gathered)
            for index, ranges in enumerate(layout_of(buckets, slices)):
                for r in ranges:
                    start = index * length + r.offset
                    self._to.append(buffer[r.start : r.start + r.count])
                    self._from.append(gathered[start : start + r.count])
        model.register_forward_pre_hook(lambda *_: self.wait())

    @property
    def pending(self) -> bool:
        """Whether an all-gather has begun that nothing has waited for yet."""
        return bool(self._works)

    @torch.no_grad()
    def start(self) -> None:
        """Begin to gather what all ranks have in `own`. Collective."""
        for gathered, (own,) in zip(self._gathered, self.own, strict=True):
            self._works.append(dist.all_gather_into_tensor(gathered, own, async_op=True))

    @torch.no_grad()
    def wait(self) -> None:
        """Wait for all groups; on a GPU the stream waits, not the host."""
        if self._works:
            for work in self._works:
                work.wait()
            self._works = []
            torch._foreach_copy_(self._to, self._from)


def _wait_for(all_gathered: list[_Gathered], *_: object) -> None:
    for gathered in all_gathered:
        gathered.wait()


def _users(model: nn.Module, parameter: str) -> list[str]:
    """Names of the modules of which one is called before the parameter is used."""
    path = parameter.split(".")[:-1]
    for depth in range(len(path)):
        if isinstance(model.get_submodule(".".join(path[:depth])), nn.ModuleList):
            return [".".join(path[: depth + 1])]
    # The model itself waits for what it owns only: it would wait for its last parts at its start.
    return [".".join(path), *([".".join(path[:-1])] if len(path) > 1 else [])]


@torch.no_grad()
def _make_views(parameters: Sequence[nn.Parameter], whole: Tensor) -> None:
    """Move parameters into a buffer, one after another."""
    start = 0
    for parameter in parameters:
        view = whole[start : start + parameter.numel()].view(parameter.shape)
        view.copy_(parameter)
        parameter.data = view
        start += parameter.numel()
