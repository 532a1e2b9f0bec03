# SPDX-License-Identifier: Apache-2.0
"""Connections over the guest's loopback that end in every way that sockets alone can bring about.

Each side counts for itself, by what its own system calls returned, so that the agent can be held against it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import socket
from pathlib import Path

import msgspec

ESTABLISHED, REFUSED, ABORTED, EXHAUSTED = 40, 10, 2, 3
PORTS = range(20000, 20004)  # outside the default range: no TIME_WAIT of the rest holds one
_REASONS = {errno.ECONNREFUSED: "refused", errno.ETIMEDOUT: "timeout", errno.EADDRNOTAVAIL: "ports_exhausted"}


class Ports(msgspec.Struct, frozen=True):
    """Where the server listens: over IPv4, over IPv6, and with a backlog of one that nobody accepts from."""

    v4: int
    v6: int
    full: int


class Count(msgspec.Struct):
    """What one side counted at one endpoint."""

    connects: int = 0
    established: int = 0
    failures: dict[str, int] = msgspec.field(default_factory=dict)


Counts = dict[str, Count]


class Server:
    """Listens, accepts, counts by port."""

    def __init__(self) -> None:
        v4 = socket.create_server(("127.0.0.1", 0), backlog=128)
        v6 = socket.create_server(("::1", 0), family=socket.AF_INET6, backlog=128)
        self._full = socket.create_server(("127.0.0.1", 0), backlog=0)
        self._listening = [v4, v6]
        for listening in (v4, v6, self._full):
            listening.setblocking(False)
        self.ports = Ports(*(listening.getsockname()[1] for listening in (v4, v6, self._full)))
        self._accepted: list[socket.socket] = []
        self._counts: Counts = {}

    def serve(self, end: int) -> Counts:
        """Accept until the descriptor ``end`` becomes readable; then close everything and return the counts."""
        with selectors.DefaultSelector() as selector:
            selector.register(end, selectors.EVENT_READ)
            for listening in self._listening:
                selector.register(listening, selectors.EVENT_READ)
            while all(key.fileobj != end for key, _ in selector.select()):
                for listening in self._listening:
                    self._accept(listening)
        for listening in (*self._listening, self._full):
            self._accept(listening)
            listening.close()
        for connection in self._accepted:
            connection.close()
        return self._counts

    def _accept(self, listening: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                self._accepted.append(listening.accept()[0])
                self._counts.setdefault(f":{listening.getsockname()[1]}", Count()).established += 1


class Client:
    """Connects, and counts by endpoint how that went."""

    def __init__(self, ports: Ports) -> None:
        self._ports = ports
        self._counts: Counts = {}

    def run(self) -> Counts:
        """Open all connections, close them, return the counts."""
        v4, v6, full = ("127.0.0.1", self._ports.v4), ("::1", self._ports.v6), ("127.0.0.1", self._ports.full)
        for number in range(ESTABLISHED):
            self._connect(v6 if number % 4 == 0 else v4)
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))  # nobody listens, and nobody else can
            for _ in range(REFUSED):
                self._connect(unused.getsockname())
        with contextlib.ExitStack() as held:
            self._connect(full, held)  # from here on the kernel drops every SYN to it
            self._connect(full, patience=None)
            for _ in range(ABORTED):
                self._connect(full, patience=0.2)
            Path("/proc/sys/net/ipv4/ip_local_port_range").write_text(f"{PORTS[0]} {PORTS[-1]}", "ascii")
            for _ in range(len(PORTS) + EXHAUSTED):
                self._connect(v4, held)
        return self._counts

    def _connect(
        self, address: tuple[str, int], held: contextlib.ExitStack | None = None, patience: float | None = 20.0
    ) -> None:
        host, port = address
        count = self._counts.setdefault(f"[{host}]:{port}" if ":" in host else f"{host}:{port}", Count())
        client = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        if held:
            held.enter_context(client)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, 1)
        client.settimeout(patience)
        count.connects += 1
        try:
            client.connect(address)
            count.established += 1
        except OSError as error:
            # Python's own time limit has no error number: the application gave up, not the kernel.
            reason = _REASONS[error.errno] if error.errno else "aborted"
            count.failures[reason] = count.failures.get(reason, 0) + 1
        if not held:
            client.close()


def move_to(cgroup: Path) -> None:
    """Become part of a cgroup, made where it doesn't exist."""
    cgroup.mkdir(exist_ok=True)
    (cgroup / "cgroup.procs").write_text(str(os.getpid()), "ascii")
