"""The target encoder: an fp32 EMA of the encoder's master weights, sharded as the optimizer is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vjepa_fast.kernels import ema_update_
from vjepa_fast.models.encoder import VisionTransformer
from vjepa_fast.training.zero.shards import GroupShard
from vjepa_fast.training.zero.weights import GatheredWeights, SortedWeights


class Teacher:
    """The target encoder (paper, section 3.1), outside the engine.

    Each rank keeps the EMA of its shard of the fp32 master weights, on the device of the masters.
    The target encoder's parameters are views of one flat buffer per parameter group. How that
    buffer follows the EMA depends on the group's storage:

    | storage  | when                                | the buffer                                 |
    |----------|-------------------------------------|--------------------------------------------|
    | one      | fp32, neither sharded nor offloaded | is the EMA itself                          |
    | cast     | bf16, neither sharded nor offloaded | is written by the EMA update, cast to bf16 |
    | gathered | sharded or offloaded                | has this rank's slices written so, and is  |
    |          |                                     | all-gathered from all ranks                |

    The all-gathers are asynchronous, one for each bucket (`zero.weights`), before those of the
    student's weights. The forward pass waits for a bucket when it needs it, so they overlap with
    the target encoder's own forward pass of the next step, which comes first. At stage 3, where a
    shard has a piece of every parameter, and if offloaded, there is one all-gather for each group,
    and the student comes first; at stage 3 one more copy puts the pieces in order.

    Memory for P encoder parameters on `world` ranks, in bytes per rank: "one" 4 P; "cast" 6 P;
    "gathered" 4 P / world for the EMA, 2 P (bf16) or 4 P (fp32) for the buffer, and the same again
    at stage 3. The all-gathers move 2 P or 4 P per step.

    Args:
        encoder: the target encoder with its initial weights, on its device.
        shards: of the student's encoder on this rank, which the EMA follows. Without any the target
            encoder is frozen: there is no EMA and no communication.

    Attributes:
        encoder: the target encoder in the dtype of the student's weights, without gradients. Its
            forward pass waits for its weights; to read them otherwise see `network`.
        shards: as given.
        ema: fp32 EMA weights, laid out as each shard's masters, by group name; empty if frozen.
    """

    def __init__(self, encoder: VisionTransformer, shards: list[GroupShard]) -> None:
        self.encoder, self.shards = encoder, shards
        self.ema: dict[str, list[Tensor]] = {}
        self._updates: list[_Update] = []
        self._weights: GatheredWeights | SortedWeights | None = None
        if not shards:
            return
        parameters = dict(encoder.named_parameters())
        groups = [
            ([parameters[name.removeprefix("encoder.")] for name in shard.names], shard.buckets)
            for shard in shards
        ]
        first = shards[0]
        kind = SortedWeights if first.one_call and first.sharded else GatheredWeights
        dtype = groups[0][0][0].dtype
        self._weights = kind(encoder, groups, len(first.layout), first.rank, dtype)
        for shard, buffer, own in zip(
            shards, self._weights.buffers, self._weights.own, strict=True
        ):
            update = _make_update(shard, buffer, own)
            self._updates.append(update)
            self.ema[shard.name] = update.ema

    @property
    def waits_by_bucket(self) -> bool:
        """Whether a part of the forward pass can run before all weights are gathered; True where
        nothing is gathered."""
        first = self.shards[0] if self.shards else None
        return not (first and first.sharded) or (len(first.buckets) > 1 and not first.one_call)

    @property
    def pending(self) -> bool:
        """Whether an all-gather has begun that nothing has waited for yet."""
        return self._weights is not None and bool(self._weights.pending)

    @torch.no_grad()
    def network(self) -> VisionTransformer:
        """`encoder`, whose weights are complete until the next update; call this again after it.
        The stream waits for the all-gathers of the last update, not the host."""
        if self._weights is not None:
            self._weights.wait()
        return self.encoder

    @torch.no_grad()
    def update(self, momentum: float, skip: Tensor | None = None) -> None:
        """Update the EMA after an optimizer step, and start the all-gathers. Collective.

        Args:
            momentum: momentum of the EMA.
            skip: scalar; where it is not 0, the EMA stays as it is (see `ema_update_`).
        """
        for update in self._updates:
            update(momentum, skip)
        if self._weights is not None:
            self._weights.start()

    @torch.no_grad()
    def copy_ema_to_network(self) -> None:
        """Bring the target encoder in line with `ema` (after a restore). Collective."""
        for update in self._updates:
            update.copy()
        if self._weights is not None:
            self._weights.start()


@dataclass(frozen=True)
class _Update:
    """Of one parameter group of the target encoder.

    Attributes:
        ema: fp32, laid out as the masters.
        averaged: views of it, one for each of `masters`.
        masters: fp32.
        copies: where the network has this rank's part, one for each of `averaged`; empty if that is
            the EMA itself.
    """

    ema: list[Tensor]
    averaged: list[Tensor]
    masters: list[Tensor]
    copies: list[Tensor]

    def __call__(self, momentum: float, skip: Tensor | None) -> None:
        device = self.masters[0].device
        here = skip if skip is None else skip.to(device)  # host sync if offloaded
        same = bool(self.copies) and self.copies[0].device == device
        ema_update_(self.averaged, self.masters, momentum, self.copies if same else None, here)
        if not same:
            self.copy()

    def copy(self) -> None:
        if self.copies:
            torch._foreach_copy_(self.copies, self.averaged)


def _make_update(shard: GroupShard, buffer: Tensor, own: list[Tensor]) -> _Update:
    """Start an EMA at the masters.

    Args:
        shard: of the student's masters.
        buffer: of the target encoder's weights in this group.
        own: this rank's parts of it.
    """
    masters = list(shard.masters)
    device = masters[0].device
    if not shard.sharded and (buffer.dtype, buffer.device) == (torch.float32, device):  # "one"
        pieces = buffer.split([m.numel() for m in masters])
        ema = [piece.view(m.shape) for piece, m in zip(pieces, masters, strict=True)]
        return _Update(ema, ema, masters, [])
    (master,) = masters
    ema, lengths = master.detach().clone(), [o.numel() for o in own]
    return _Update([ema], list(ema.split(lengths)), list(master.split(lengths)), own)
