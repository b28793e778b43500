"""The target encoder: an fp32 EMA of the encoder's fp32 masters, sharded as the optimiser is."""

from __future__ import annotations

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
    parameters are views of those buffers. Costs 4 / world bytes per parameter for the average.

    Attributes:
        encoder: the network to run, in the dtype of the student's weights, no gradients.
        averages: fp32 average along each shard's masters, by group name.
    """

    def __init__(self, model: VJEPA, shards: list[GroupShard]) -> None:
        self.shards = [s for s in shards if s.name.startswith("encoder.")]
        self.encoder: VisionTransformer = model.make_target_encoder()
        names = {id(p): name for name, p in model.encoder.named_parameters()}
        own = dict(self.encoder.named_parameters())
        self.averages: dict[str, list[Tensor]] = {}
        self._flat: dict[str, Tensor] = {}
        for shard in self.shards:
            self.averages[shard.name] = [m.detach().clone() for m in shard.masters]
            copies = [own[names[id(p)]] for p in shard.parameters]
            flat = _flatten_dense_tensors(copies)
            if shard.sharded:  # padded, so that all ranks' partitions gather into it directly
                padded = flat.new_zeros(shard.masters[0].numel() * dist.get_world_size())
                padded[: flat.numel()] = flat
                flat = padded
            views = _unflatten_dense_tensors(flat[: shard.size], copies)
            for copy, view in zip(copies, views, strict=True):
                copy.data = view
            self._flat[shard.name] = flat

    def update(self, momentum: float) -> None:
        """Average the masters in: after every optimiser step that changed them."""
        for shard in self.shards:
            ema_update_(self.averages[shard.name], shard.masters, momentum)
        self.publish()

    @torch.no_grad()
    def publish(self) -> None:
        """Cast the averages into the network that runs, on every rank."""
        for shard in self.shards:
            flat, averages = self._flat[shard.name], self.averages[shard.name]
            if shard.sharded:
                dist.all_gather_into_tensor(flat, averages[0].to(flat.dtype))
                continue
            offset = 0
            for average in averages:
                piece = average.view(-1)[: shard.size - offset]
                flat[offset : offset + piece.numel()].copy_(piece)
                offset += piece.numel()
