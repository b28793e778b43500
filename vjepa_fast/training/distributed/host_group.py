"""What the processes' hosts tell each other, without their devices."""

from __future__ import annotations

import torch
import torch.distributed as dist


class Hosts:
    """Small collectives over gloo, on the CPU, so that nobody waits for a device.

    `any` runs once a step: it is how a signal that reaches one process stops all of them at the
    same step, and how a process that is gone is noticed. It sends one byte for each flag.

    Attributes:
        rank, world: of this process; how many there are.
    """

    def __init__(self) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self._group = None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")

    def any(self, *flags: bool) -> list[bool]:
        """For each flag, whether it is set on any process. Collective."""
        if self.world == 1:
            return list(flags)
        tensor = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self._group)
        return [bool(flag) for flag in tensor.tolist()]

    def gather(self, value: object) -> list:
        """Every process's value, by rank. Collective; for rare moments."""
        if self.world == 1:
            return [value]
        values: list = [None] * self.world
        dist.all_gather_object(values, value, group=self._group)
        return values
