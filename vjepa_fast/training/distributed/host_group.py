"""Small CPU collectives (gloo) between the processes of a run."""

from __future__ import annotations

from datetime import timedelta

import torch
import torch.distributed as dist

TIMEOUT = timedelta(minutes=10)  # of training, if a host vanishes without closing its connections


class HostGroup:
    """Collectives over gloo, which need no host sync with the device.

    Making one is collective.

    Args:
        timeout: how long a process may be later than the others, the same as of the process group
            that was joined; PeerWatch finds a dead process sooner.

    Attributes:
        rank: rank of this process.
        world: number of processes.
    """

    def __init__(self, timeout: timedelta = TIMEOUT) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self._group = None
        if dist.get_backend() != "gloo":  # torch's own timeout would be half an hour
            self._group = dist.new_group(backend="gloo", timeout=timeout)

    def any(self, *flags: bool) -> list[bool]:
        """For each flag, whether it is set on any process. Collective.

        Runs once per step with one byte per flag: a signal at one process stops all of them at the
        same step, and a collective of the group fails soon after a process died (peer_watch.py).
        """
        if self.world == 1:
            return list(flags)
        tensor = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self._group)
        return [bool(flag) for flag in tensor.tolist()]

    def all_gather(self, value: object) -> list:
        """Every process's value, by rank. Collective; pickles, so not for every step."""
        if self.world == 1:
            return [value]
        values: list = [None] * self.world
        dist.all_gather_object(values, value, group=self._group)
        return values

    def barrier(self) -> None:
        """Wait for all processes. Collective."""
        if self.world > 1:
            dist.barrier(group=self._group)
