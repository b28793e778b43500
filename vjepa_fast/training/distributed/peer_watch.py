"""Ends this process when another process of the run dies, even inside a blocked collective.

A dead process shows in two ways:

1. A collective fails: gloo, NCCL or the store raise a RuntimeError. `PeerWatch` turns it into one
   sentence. The loop's `HostGroup.any` makes this happen within a step, usually.
2. A collective blocks: NCCL waits for its timeout, and gloo's all-reduce has waited for minutes on
   a send to a dead process. So every process keeps an idle connection to rank 0, which the kernel
   closes when its owner dies, and a thread that watches it. Keep-alive probes find a host that
   vanished without closing its connections, in about half a minute.

Either way the process ends with a sentence and status 2, which closes its own connections, so that
the next one notices. torchrun, srun and DeepSpeed's launcher also kill the other processes of a
host; this works without them, and across hosts.
"""

from __future__ import annotations

import os
import re
import secrets
import selectors
import socket
import sys
import threading

from vjepa_fast.errors import UserError
from vjepa_fast.training.distributed.host_group import HostGroup

_GRACE = 5.0  # seconds in which a blocked collective may still fail with a message of its own
_CONNECT = 60.0  # seconds
_LEAVING = b"."  # sent before a process closes its connection on purpose
# What gloo, NCCL and the store say when a process has died.
_GONE = re.compile(
    r"connection (was )?(closed|reset|refused)|broken pipe|timed out|socket closed|remote process",
    re.IGNORECASE,
)


class PeerWatch:
    """A context in which the death of any other process ends this one.

    Leaving it without an exception is not a death. It costs nothing per step. Entering is
    collective.

    Args:
        host_group: the processes.
        then: what running the same command again does, for the message.

    Raises:
        UserError: on entering, rank 0 cannot be reached; on leaving with a RuntimeError, that
            error says that another process is gone.
    """

    def __init__(
        self, host_group: HostGroup, then: str = "resume from the newest checkpoint"
    ) -> None:
        self._host_group, self._then = host_group, then
        self._left = threading.Event()
        self._connections: dict[socket.socket, int] = {}  # and the rank at the other end

    def __enter__(self) -> PeerWatch:
        if self._host_group.world > 1:
            try:
                self._connect()
            except RuntimeError as error:
                self._raise_if_gone(error)
                raise
        self._thread = threading.Thread(target=self._watch, name="peer watch", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, _: object) -> None:
        self._left.set()
        for connection in self._connections:
            try:
                if error is None:
                    connection.sendall(_LEAVING)
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:  # the other end has closed it already
                pass
        self._thread.join()
        for connection in self._connections:
            connection.close()
        if isinstance(error, RuntimeError):
            self._raise_if_gone(error)

    def _connect(self) -> None:
        """Connect every other rank to rank 0. Collective."""
        rank = self._host_group.rank
        server = _server() if rank == 0 else None
        meeting = (server.getsockname()[1], secrets.token_bytes(16)) if server else None
        port, token = self._host_group.all_gather(meeting)[0]
        try:
            if server:
                self._accept(server, token)
            else:
                address = (os.environ["MASTER_ADDR"], port)
                connection = socket.create_connection(address, timeout=_CONNECT)
                connection.sendall(token + rank.to_bytes(4, "big"))
                self._connections[connection] = 0
        except OSError as error:
            raise UserError(
                f"MASTER_ADDR: found {os.environ['MASTER_ADDR']}, where rank {rank} cannot reach "
                f"rank 0 at port {port} ({error}), expected a connection; let the hosts of a run "
                "connect to each other"
            ) from None
        finally:
            if server:
                server.close()
        for connection in self._connections:
            _set_keep_alive(connection)

    def _accept(self, server: socket.socket, token: bytes) -> None:
        server.settimeout(_CONNECT)
        while len(self._connections) < self._host_group.world - 1:
            connection, _ = server.accept()
            connection.settimeout(_CONNECT)
            hello = connection.recv(len(token) + 4, socket.MSG_WAITALL)
            if hello[:-4] == token:
                self._connections[connection] = int.from_bytes(hello[-4:], "big")
            else:
                connection.close()

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for connection, rank in self._connections.items():
                selector.register(connection, selectors.EVENT_READ, rank)
            while selector.get_map() and not self._left.is_set():
                for key, _ in selector.select():
                    if not _is_leaving(key.fileobj):
                        self._end_process(key.data)
                        return
                    selector.unregister(key.fileobj)

    def _end_process(self, rank: int) -> None:
        if self._left.wait(_GRACE):
            return
        reason = f"rank {rank}" if self._host_group.rank == 0 else "the connection to rank 0 closed"
        print(f"error: {self._message(reason)}", file=sys.stderr, flush=True)
        os._exit(2)  # closes the connections, so that the other processes notice

    def _raise_if_gone(self, error: RuntimeError) -> None:
        reason = collective_reason(error)
        if self._host_group.world > 1 and _GONE.search(reason):
            raise UserError(self._message(reason)) from None

    def _message(self, reason: str) -> str:
        return (
            f"rank {self._host_group.rank}: found that another process of this run is gone "
            f"({reason}), expected all {self._host_group.world} of them; read its last messages, "
            f"then run the same command to {self._then}"
        )


def collective_reason(error: RuntimeError) -> str:
    """A failed collective's message without its source file and the advice that gloo adds."""
    line = str(error).partition("\n")[0].partition(". This is ")[0]
    return re.sub(r"^\[\S+:\d+\] ", "", line)


def _server() -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def _set_keep_alive(connection: socket.socket) -> None:
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)


def _is_leaving(connection: socket.socket) -> bool:
    """Whether the other end announced that it leaves, rather than just closed."""
    try:
        return connection.recv(1) == _LEAVING
    except OSError:
        return False
