"""Two network namespaces with a rate-limited link between them, by Linux's `ip` and `tc`.

One process runs in each. Neither can reach anything but the other.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from vjepa_fast.errors import UserError

ADDRESSES = "10.77.0.1", "10.77.0.2"
BURST, QUEUE = 256 << 10, 1 << 20  # bytes that pass at once, bytes that wait


@dataclass(frozen=True)
class Link:
    """Two namespaces, each with one end of a link.

    Attributes:
        namespaces: their names.
        devices: the network devices in them, one each.
    """

    namespaces: tuple[str, str]
    devices: tuple[str, str]

    def limit(self, rate: float) -> None:
        """Let `rate` bytes/s pass in each direction, by a token bucket filter."""
        for space, device in zip(self.namespaces, self.devices, strict=True):
            _run(
                *("tc", "-n", space, "qdisc", "replace", "dev", device, "root", "tbf"),
                *("rate", f"{round(8 * rate)}bit", "burst", str(BURST), "limit", str(QUEUE)),
            )

    def sent(self) -> list[int]:
        """Bytes that have left each end since it was made, with all headers."""
        counts = []
        for space, device in zip(self.namespaces, self.devices, strict=True):
            path = f"/sys/class/net/{device}/statistics/tx_bytes"
            counts.append(int(_run("ip", "netns", "exec", space, "cat", path)))
        return counts

    def start(
        self, end: int, command: Sequence[str], env: dict[str, str], **options: object
    ) -> subprocess.Popen:
        """Start a program in one of the namespaces; gloo finds the other end."""
        own = os.environ | env | {"GLOO_SOCKET_IFNAME": self.devices[end]}
        inside = ["ip", "netns", "exec", self.namespaces[end], *command]
        return subprocess.Popen(inside, env=own, **options)


@contextmanager
def two_namespaces() -> Iterator[Link]:
    """Make both namespaces and the link; remove them at the end.

    Raises:
        UserError: not permitted, or `ip` and `tc` are missing.
    """
    missing = [name for name in ("ip", "tc") if shutil.which(name) is None]
    if missing:
        raise UserError(
            f"network namespaces: found no {' and no '.join(missing)}, expected both commands; "
            "install iproute2"
        )
    tag = f"vf{os.getpid()}"
    link = Link((f"{tag}a", f"{tag}b"), (f"{tag}a"[-15:], f"{tag}b"[-15:]))
    try:
        for space in link.namespaces:
            _run("ip", "netns", "add", space)
        (a, b), (one, two) = link.namespaces, link.devices
        _run(*f"ip link add {one} netns {a} type veth peer name {two} netns {b}".split())
        for space, device, address in zip(link.namespaces, link.devices, ADDRESSES, strict=True):
            _run("ip", "-n", space, "address", "add", f"{address}/24", "dev", device)
            for name in (device, "lo"):
                _run("ip", "-n", space, "link", "set", name, "up")
        yield link
    finally:
        for space in link.namespaces:
            subprocess.run(["ip", "netns", "del", space], capture_output=True, check=False)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(
            f"network namespaces: found {done.stderr.strip() or 'an error'} ({' '.join(command)}), "
            "expected the permission to make them; run as root on a machine that allows it"
        )
    return done.stdout
