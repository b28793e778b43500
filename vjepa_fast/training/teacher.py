"""The target encoder: an fp32 EMA of the encoder's fp32 masters, sharded as the optimiser is."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from vjepa_fast.kernels import ema_update_
from vjepa_fast.models.encoder import VisionTransformer
from vjepa_fast.training.zero.shards import GroupShard


class Teacher:
    """Target encoder (paper, section 3.1), outside the engine.

    Each rank averages its shard of the masters in fp32, where they are, casts it into the target
    encoder's dtype and gathers the whole, flat, into one buffer per parameter group; the target
    encoder's parameters are views of those buffers. At stage 3, where a share is a piece of every
    parameter, what was gathered is put in order by one more copy.

    Costs, for P parameters of the encoder over `world` ranks: 4 P / world bytes for the average,
    2 P (bf16) or 4 P for the network that runs (twice that at stage 3), and in bf16 2 P / world for
    the cast shard; each step an all-gather of 2 P (4 P) bytes where the masters are sharded, else
    nothing. In fp32 where nothing is sharded or offloaded, the average is the network: 4 P in all.
    The gather is waited for when somebody asks for the network: it passes behind the next step's
    student.

    Args:
        encoder: the network to run, with its initial weights, on its device.
        names: of the student's encoder's parameters, by their id.
        shards: this rank's masters.
        frozen: weights, by parameter name, of a target encoder that stays as it is: there is then
            no average, and nothing is sent.

    Attributes:
        averages: fp32 average along each shard's masters, by group name; none if frozen.
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        names: Mapping[int, str],
        shards: list[GroupShard],
        frozen: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._encoder = encoder
        self.shards = [s for s in shards if s.name.startswith("encoder.")] if frozen is None else []
        self.averages: dict[str, list[Tensor]] = {}
        own = dict(encoder.named_parameters())
        if frozen is not None:
            for name, parameter in own.items():
                parameter.data.copy_(frozen[name])
        self._casts: dict[str, list[Tensor]] = {}  # of the averages, or these themselves in fp32
        self._copies: dict[str, _Copy] = {}
        for shard in self.shards:
            averages = [m.detach().clone() for m in shard.masters]
            parameters = [own[names[id(p)]] for p in shard.parameters]
            flat = _flatten_dense_tensors(parameters)
            whole = sum(a.numel() for a in averages) * len(shard.layout)
            padded = flat.new_zeros(whole)  # as the masters are
            padded[: flat.numel()] = flat
            views = _unflatten_dense_tensors(padded[: shard.size], parameters)
            for parameter, view in zip(parameters, views, strict=True):
                parameter.data = view
            if shard.sharded or averages[0].device != flat.device:
                cast = flat.dtype != averages[0].dtype
                casts = [a.to(flat.dtype) for a in averages] if cast else averages
                self._copies[shard.name] = _Copy(shard, casts, padded)
            else:
                pieces = padded.split([a.numel() for a in averages])
                casts = [p.view(a.shape) for p, a in zip(pieces, averages, strict=True)]
                if flat.dtype == averages[0].dtype:
                    averages = casts  # the network that runs is the average
            self.averages[shard.name], self._casts[shard.name] = averages, casts

    @property
    @torch.no_grad()
    def encoder(self) -> VisionTransformer:
        """The network to run, in the dtype of the student's weights, no gradients. Ask anew after
        an update: its weights are whole from then on."""
        for copy in self._copies.values():
            copy.finish()
        return self._encoder

    @torch.no_grad()
    def update(self, momentum: float, skip: Tensor | None = None) -> None:
        """Average the masters in, after an optimiser step; `skip`: see `ema_update_`."""
        for shard in self.shards:
            averages, casts = self.averages[shard.name], self._casts[shard.name]
            here = skip if skip is None else skip.to(averages[0].device)  # waits if offloaded
            copies = None if casts is averages else casts
            ema_update_(averages, shard.masters, momentum, copies, here)
        self._gather()

    @torch.no_grad()
    def publish(self) -> None:
        """Bring the network that runs in line with the averages, on every rank."""
        for name, casts in self._casts.items():
            if casts is not self.averages[name]:
                torch._foreach_copy_(casts, self.averages[name])
        self._gather()

    def _gather(self) -> None:
        for copy in self._copies.values():
            copy.start()


class _Copy:
    """From the ranks' cast shards to a group's flat vector of the target encoder.

    Args:
        shard: of this rank.
        casts: its one tensor, where the masters are.
        flat: the target encoder's flat vector with room for the padding, on its device.
    """

    def __init__(self, shard: GroupShard, casts: list[Tensor], flat: Tensor) -> None:
        self._cast, self._flat, self._sharded = casts[0], flat, shard.sharded
        self._gathered = flat if shard.in_order else torch.empty_like(flat)
        self._work: dist.Work | None = None
        self._to: list[Tensor] = []
        self._from: list[Tensor] = []
        for rank, ranges in enumerate(() if shard.in_order else shard.layout):
            for r in ranges:
                place = rank * self._cast.numel() + r.place
                self._to.append(flat[r.start : r.start + r.count])
                self._from.append(self._gathered[place : place + r.count])

    def start(self) -> None:
        """Begin to gather. Collective where the masters are sharded."""
        if self._sharded:
            mine = self._cast.to(self._flat.device)
            self._work = dist.all_gather_into_tensor(self._gathered, mine, async_op=True)
        else:
            self._gathered.copy_(self._cast)
            self._put_in_order()

    def finish(self) -> None:
        """Wait until what was begun is there; on a GPU its stream waits, not the host."""
        if self._work is not None:
            self._work.wait()
            self._work = None
            self._put_in_order()

    def _put_in_order(self) -> None:
        if self._to:
            torch._foreach_copy_(self._to, self._from)
