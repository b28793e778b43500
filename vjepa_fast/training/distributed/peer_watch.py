"""Noticing that another process of the run is gone, whatever this one waits for.

Collectives notice late or never: NCCL waits for its time-out, and gloo's all-reduce was seen to
wait on a send to a process that had been dead for minutes. So every process keeps one idle
connection to rank 0, which the kernel closes when its owner dies, and a thread that looks at it.
Keep-alive probes find a host that vanished without closing anything, in about half a minute.
"""

from __future__ import annotations

import os
import secrets
import selectors
import socket
import sys
import threading

from vjepa_fast.errors import UserError
from vjepa_fast.training.distributed.host_group import Hosts

_GRACE = 5.0  # seconds for a collective to fail by itself, with words of its own
_CONNECT = 60.0
_LEAVING = b"."  # what a process says before it closes its connection on purpose


def gone_message(rank: int, world: int, reason: str) -> str:
    """The sentence for a process that found another one gone."""
    return (
        f"rank {rank}: found that another process of this run is gone ({reason}), expected all "
        f"{world} of them; its own last words say why, and the same command goes on from the "
        "newest checkpoint"
    )


class Peers:
    """While it is entered, the end of any process ends this one, with a sentence and status 2.

    Leaving it without an exception is not such an end. Costs nothing per step. Entering is
    collective.
    """

    def __init__(self, hosts: Hosts) -> None:
        self._rank, self._world = hosts.rank, hosts.world
        self._left = threading.Event()
        self._connections: dict[socket.socket, int] = {}
        if self._world == 1:
            return
        server = _server() if self._rank == 0 else None
        meeting = (server.getsockname()[1], secrets.token_bytes(16)) if server else None
        port, token = hosts.gather(meeting)[0]
        try:
            if server:
                self._accept(server, token)
            else:
                address = (os.environ["MASTER_ADDR"], port)
                connection = socket.create_connection(address, timeout=_CONNECT)
                connection.sendall(token + self._rank.to_bytes(4, "big"))
                self._connections[connection] = 0
        except OSError as error:
            raise UserError(
                f"MASTER_ADDR: found {os.environ['MASTER_ADDR']}, where rank {self._rank} can't "
                f"meet rank 0 at port {port} ({error}), expected to; let the hosts of a run "
                "connect to each other"
            ) from None
        finally:
            if server:
                server.close()
        for connection in self._connections:
            _watch_closely(connection)

    def __enter__(self) -> Peers:
        self._thread = threading.Thread(target=self._look, name="peers", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._left.set()
        for connection in self._connections:
            try:
                if kind is None:
                    connection.sendall(_LEAVING)
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:  # the other end has left before
                pass
        self._thread.join()
        for connection in self._connections:
            connection.close()

    def _accept(self, server: socket.socket, token: bytes) -> None:
        server.settimeout(_CONNECT)
        while len(self._connections) < self._world - 1:
            connection, _ = server.accept()
            connection.settimeout(_CONNECT)
            hello = connection.recv(len(token) + 4, socket.MSG_WAITALL)
            if hello[:-4] == token:
                self._connections[connection] = int.from_bytes(hello[-4:], "big")
            else:
                connection.close()

    def _look(self) -> None:
        with selectors.DefaultSelector() as selector:
            for connection, rank in self._connections.items():
                selector.register(connection, selectors.EVENT_READ, rank)
            while selector.get_map() and not self._left.is_set():
                for key, _ in selector.select():
                    if not _has_left(key.fileobj):
                        self._lost(key.data)
                        return
                    selector.unregister(key.fileobj)

    def _lost(self, rank: int) -> None:
        if self._left.wait(_GRACE):
            return
        reason = f"rank {rank}" if self._rank == 0 else "the connection to rank 0 ended"
        print(
            f"error: {gone_message(self._rank, self._world, reason)}", file=sys.stderr, flush=True
        )
        os._exit(2)  # closes the connections, so that the others know


def _server() -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def _watch_closely(connection: socket.socket) -> None:
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)


def _has_left(connection: socket.socket) -> bool:
    """Whether the other end said that it leaves, rather than just closed."""
    try:
        return connection.recv(1) == _LEAVING
    except OSError:
        return False
