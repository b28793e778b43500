"""The target encoder: an fp32 EMA of the encoder's fp32 masters, sharded as the optimiser is."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from vjepa_fast.kernels import ema_update_
from vjepa_fast.models.encoder import VisionTransformer
from vjepa_fast.models.jepa import VJEPA
from vjepa_fast.training.shards import GroupShard


class Teacher:
    """Target encoder (paper, section 3.1), outside the engine.

    Each rank averages its shard of the masters in fp32, casts it into the target encoder's dtype
    and gathers the whole, flat, into one buffer per parameter group; the target encoder's
    parameters are views of those buffers.

    Costs, for P parameters of the encoder over `world` ranks: 4 P / world bytes for the average,
    2 P (bf16) or 4 P for the network that runs, and 2 P / world for the cast shard; each step an
    all-gather of 2 P (4 P) bytes where the masters are sharded, else nothing.

    Args:
        model: encoder and predictor, inside their engine.
        shards: this rank's masters.
        frozen: weights, by parameter name, of a target encoder that stays as it is: there is then
            no average, and nothing is sent.

    Attributes:
        encoder: the network to run, in the dtype of the student's weights, no gradients.
        averages: fp32 average along each shard's masters, by group name; none if frozen.
    """

    def __init__(
        self,
        model: VJEPA,
        shards: list[GroupShard],
        frozen: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.encoder: VisionTransformer = model.make_target_encoder()
        self.shards = [s for s in shards if s.name.startswith("encoder.")] if frozen is None else []
        self.averages: dict[str, list[Tensor]] = {}
        own = dict(self.encoder.named_parameters())
        if frozen is not None:
            for name, parameter in own.items():
                parameter.data.copy_(frozen[name])
        names = {id(p): name for name, p in model.encoder.named_parameters()}
        self._flat: dict[str, Tensor] = {}
        self._casts: dict[str, list[Tensor]] = {}  # beside the averages
        for shard in self.shards:
            averages = [m.detach().clone() for m in shard.masters]
            copies = [own[names[id(p)]] for p in shard.parameters]
            flat = _flatten_dense_tensors(copies)
            whole = sum(a.numel() for a in averages)
            if shard.sharded:
                whole *= dist.get_world_size()
            padded = flat.new_zeros(whole)  # as the masters are
            padded[: flat.numel()] = flat
            views = _unflatten_dense_tensors(padded[: shard.size], copies)
            for copy, view in zip(copies, views, strict=True):
                copy.data = view
            self.averages[shard.name], self._flat[shard.name] = averages, padded
            if shard.sharded:
                self._casts[shard.name] = [a.to(flat.dtype, copy=True) for a in averages]
            else:
                pieces = padded.split([a.numel() for a in averages])
                casts = [p.view(a.shape) for p, a in zip(pieces, averages, strict=True)]
                self._casts[shard.name] = casts

    @torch.no_grad()
    def update(self, momentum: float, skip: Tensor | None = None) -> None:
        """Average the masters in, after an optimiser step; `skip`: see `ema_update_`."""
        for shard in self.shards:
            name = shard.name
            ema_update_(self.averages[name], shard.masters, momentum, self._casts[name], skip)
        self._gather()

    @torch.no_grad()
    def publish(self) -> None:
        """Bring the network that runs in line with the averages, on every rank."""
        for name, casts in self._casts.items():
            torch._foreach_copy_(casts, self.averages[name])
        self._gather()

    def _gather(self) -> None:
        for shard in self.shards:
            if shard.sharded:
                dist.all_gather_into_tensor(self._flat[shard.name], self._casts[shard.name][0])
