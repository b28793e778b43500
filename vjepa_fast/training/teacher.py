"""The target encoder: an fp32 EMA of the encoder's master weights, sharded as the optimizer is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from vjepa_fast.kernels import ema_update_
from vjepa_fast.models.encoder import VisionTransformer
from vjepa_fast.training.zero.shards import GroupShard


class Teacher:
    """The target encoder (paper, section 3.1), outside the engine.

    Each rank keeps the EMA of its shard of the fp32 master weights, on the device of the masters.
    The target encoder's parameters are views of one flat buffer per parameter group. How that
    buffer follows the EMA depends on the group's storage:

    | storage  | when                                | the buffer                                 |
    |----------|-------------------------------------|--------------------------------------------|
    | one      | fp32, neither sharded nor offloaded | is the EMA itself                          |
    | cast     | bf16, neither sharded nor offloaded | is written by the EMA update, cast to bf16 |
    | gathered | sharded or offloaded                | is all-gathered from the ranks' shards, or |
    |          |                                     | copied from host memory                    |

    The all-gather is asynchronous. `network` waits for it, so it is overlapped with the student's
    forward pass of the next step. At stage 3, where a shard has a piece of every parameter, one
    more copy puts the gathered pieces in order.

    Memory for P encoder parameters on `world` ranks, in bytes per rank: "one" 4 P; "cast" 6 P;
    "gathered" 4 P / world for the EMA, 2 P (bf16) or 4 P (fp32) for the buffer, the same again at
    stage 3, and in bf16 2 P / world for the cast shard. The all-gather moves 2 P or 4 P per step.

    Args:
        encoder: the target encoder with its initial weights, on its device.
        shards: of the student's encoder on this rank, which the EMA follows. Without any the target
            encoder is frozen: there is no EMA and no communication.

    Attributes:
        shards: as given.
        ema: fp32 EMA weights, laid out as each shard's masters, by group name; empty if frozen.
    """

    def __init__(self, encoder: VisionTransformer, shards: list[GroupShard]) -> None:
        self._encoder, self.shards = encoder, shards
        self._groups = [_make_group(encoder, shard) for shard in shards]
        self.ema: dict[str, list[Tensor]] = {g.shard.name: g.ema for g in self._groups}

    @torch.no_grad()
    def network(self) -> VisionTransformer:
        """Wait for the all-gather of the last update, if any (the stream waits, not the host).

        Returns:
            The target encoder in the dtype of the student's weights, without gradients. Its weights
            are complete until the next update; call this again after it.
        """
        for group in self._groups:
            if group.gather:
                group.gather.finish()
        return self._encoder

    @torch.no_grad()
    def update(self, momentum: float, skip: Tensor | None = None) -> None:
        """Update the EMA after an optimizer step, and start the all-gather. Collective.

        Args:
            momentum: momentum of the EMA.
            skip: scalar; where it is not 0, the EMA stays as it is (see `ema_update_`).
        """
        for group in self._groups:
            here = skip if skip is None else skip.to(group.ema[0].device)  # host sync if offloaded
            ema_update_(group.ema, group.shard.masters, momentum, group.cast, here)
        self._start_gathers()

    @torch.no_grad()
    def copy_ema_to_network(self) -> None:
        """Bring the target encoder in line with `ema` (after a restore). Collective."""
        for group in self._groups:
            if group.cast is not None:
                torch._foreach_copy_(group.cast, group.ema)
        self._start_gathers()

    def _start_gathers(self) -> None:
        for group in self._groups:
            if group.gather:
                group.gather.start()


@dataclass(frozen=True)
class _Group:
    """One parameter group of the target encoder.

    Attributes:
        shard: of the student's masters that the EMA follows.
        ema: fp32, laid out as the masters.
        cast: the EMA in the network's dtype, in the same layout; None in fp32.
        gather: from the ranks' shards to the network's buffer; None unless the group is "gathered".
    """

    shard: GroupShard
    ema: list[Tensor]
    cast: list[Tensor] | None
    gather: _Gather | None


def _make_group(encoder: VisionTransformer, shard: GroupShard) -> _Group:
    """Move the group's parameters into one flat buffer, and start an EMA at the masters."""
    own = dict(encoder.named_parameters())
    parameters = [own[name.removeprefix("encoder.")] for name in shard.names]
    ema = [m.detach().clone() for m in shard.masters]
    flat = _flatten_dense_tensors(parameters)
    buffer = flat.new_zeros(sum(e.numel() for e in ema) * len(shard.layout))  # padded as masters
    buffer[: shard.size] = flat
    views = _unflatten_dense_tensors(buffer[: shard.size], parameters)
    for parameter, view in zip(parameters, views, strict=True):
        parameter.data = view
    low_precision = buffer.dtype != torch.float32
    if shard.sharded or ema[0].device != buffer.device:  # "gathered"
        cast = [e.to(buffer.dtype) for e in ema] if low_precision else None
        return _Group(shard, ema, cast, _Gather(shard, (cast or ema)[0], buffer))
    pieces = buffer.split([e.numel() for e in ema])
    in_buffer = [piece.view(e.shape) for piece, e in zip(pieces, ema, strict=True)]
    if low_precision:
        return _Group(shard, ema, in_buffer, None)  # "cast"
    return _Group(shard, in_buffer, None, None)  # "one"


class _Gather:
    """Fills a group's buffer from the shards of all ranks.

    Args:
        shard: this rank's.
        source: its EMA in the buffer's dtype, one tensor, on the device of the masters.
        buffer: the group's flat vector with room for the padding, on the target encoder's device.
    """

    def __init__(self, shard: GroupShard, source: Tensor, buffer: Tensor) -> None:
        self._source, self._buffer, self._sharded = source, buffer, shard.sharded
        self._gathered = buffer if shard.in_order else torch.empty_like(buffer)
        self._work: dist.Work | None = None
        self._to: list[Tensor] = []
        self._from: list[Tensor] = []
        for rank, ranges in enumerate(() if shard.in_order else shard.layout):
            for r in ranges:
                start = rank * source.numel() + r.offset
                self._to.append(buffer[r.start : r.start + r.count])
                self._from.append(self._gathered[start : start + r.count])

    @property
    def in_flight(self) -> bool:
        """Whether an all-gather has started and `finish` has not waited for it yet."""
        return self._work is not None

    def start(self) -> None:
        """Start the all-gather, or copy where nothing is sharded. Collective where sharded."""
        if self._sharded:
            own = self._source.to(self._buffer.device)
            self._work = dist.all_gather_into_tensor(self._gathered, own, async_op=True)
        else:
            self._gathered.copy_(self._source)
            self._put_in_order()

    def finish(self) -> None:
        """Wait for the all-gather, if one has started; on a GPU the stream waits, not the host."""
        if self._work is not None:
            self._work.wait()
            self._work = None
            self._put_in_order()

    def _put_in_order(self) -> None:
        if self._to:
            torch._foreach_copy_(self._to, self._from)
