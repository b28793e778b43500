"""ZeRO stages 0 to 2 without offloading: our own, with all communication behind computation."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vjepa_fast.training.zero.gradients import GradientBuckets
from vjepa_fast.training.zero.shards import bucket_capacity, make_buckets, make_shards
from vjepa_fast.training.zero.weights import GatheredWeights


class BucketedOptimizer:
    """AdamW on shards of buckets; an adapter as those in optimizers.py.

    Gradients are reduced bucket by bucket during the last backward pass of a step (`gradients.py`).
    Each rank steps fp32 master weights of its slice of every bucket. The weights that the model
    runs with are gathered bucket by bucket during the next forward pass (`weights.py`). So a step
    waits for the communication of the last bucket of gradients, of the first bucket of weights, and
    for what computation takes less time than.

    Memory for P parameters on N ranks, in bytes per rank, without activations; W is 4 in fp32 and 2
    in bf16, b the elements of a bucket:

    | stage | weights | gradients         | masters, moments | sent                            |
    |-------|---------|-------------------|------------------|---------------------------------|
    | 0     | 4 P     | 4 P               | 8 P              | all-reduce of 4 P               |
    | 1     | W P     | 4 P + 4 P / N     | 12 P / N         | reduce-scatter of 4 P, gather   |
    |       |         |                   |                  | of W P                          |
    | 2     | W P     | 12 b + 4 P / N    | 12 P / N         | the same, but gradients after   |
    |       |         |                   |                  | every micro-batch               |

    Alone, a rank has the memory of stage 0, and beside it 2 P of running weights in bf16.

    Args:
        model: on its device, with fp32 parameters; they become views of buckets in `dtype`.
        optimizer: over the parameter groups of the model; it then steps the masters.
        stage: 0, 1 or 2.
        dtype: that the model runs in.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, stage: int, dtype: torch.dtype
    ) -> None:
        self.torch, world = optimizer, dist.get_world_size()
        self.sharded = stage > 0 and world > 1
        slices, rank = (world, dist.get_rank()) if self.sharded else (1, 0)
        groups = [list(settings["params"]) for settings in optimizer.param_groups]
        elements = sum(p.numel() for group in groups for p in group)
        capacity = bucket_capacity(elements, slices)
        sizes = [[p.numel() for p in group] for group in groups]
        buckets = [make_buckets(own, slices, capacity) for own in sizes]
        cut = list(zip(groups, buckets, strict=True))
        initial = [torch.cat([p.detach().view(-1) for p in group]) for group in groups]
        self._weights = GatheredWeights(model, cut, slices, rank, dtype)
        self._gradients = GradientBuckets(model, cut, slices, keep=stage < 2)
        gradients = self._gradients.shards
        # In fp32, where nothing is sharded, the weights themselves are the masters.
        self._copies = self.sharded or dtype != torch.float32
        masters = (
            [torch.zeros_like(g) for g in gradients] if self._copies else self._weights.buffers
        )
        self.shards = make_shards(
            model, optimizer.param_groups, groups, [[m] for m in masters], buckets, slices, rank
        )
        for shard, flat in zip(self.shards, initial, strict=True):
            own = [flat[r.start : r.start + r.count] for r in shard.ranges]
            shard.write(torch.cat([flat[:0], *own]), shard.masters)
        self._slices = [
            (own, piece)
            for shard, group in zip(self.shards, self._weights.own, strict=True)
            for own, piece in zip(group, shard.by_bucket(shard.masters[0]), strict=True)
        ]
        for settings, master, gradient in zip(
            optimizer.param_groups, masters, gradients, strict=True
        ):
            settings["params"] = [master]
            master.grad = gradient

    def begin_backward(self, first: bool, last: bool) -> None:
        """Before a backward pass, the first or the last one of a step.

        Raises:
            RuntimeError: a module used weights before it waited for their all-gather.
        """
        pending = self._weights.pending
        if pending:
            raise RuntimeError(
                f"weights: found {pending[0]} used or unused without a wait for its all-gather, "
                "expected one by a module that is called before; see training/zero/weights.py"
            )
        self._gradients.begin(first, last)

    def gradients(self) -> list[list[Tensor]]:
        """Padding included; it is zero."""
        return [[gradient] for gradient in self._gradients.shards]

    def reduce_gradients(self) -> None:
        """Average over ranks what the backward pass has begun to reduce. Collective."""
        self._gradients.finish()

    def share_weights(self) -> None:
        """After a step: begin to gather the weights from all ranks' masters. Collective."""
        if self._copies:
            torch._foreach_copy_(*map(list, zip(*self._slices, strict=True)))
        self._weights.start()

    def wait_for_weights(self) -> None:
        """Before the model's parameters are read other than by its forward pass."""
        self._weights.wait()

    def copy_masters_to_model(self) -> None:
        """Cast the masters into the model's parameters on every rank. Collective."""
        self.share_weights()
        self.wait_for_weights()
