# SPDX-License-Identifier: Apache-2.0
"""An endpoint whose HTTP connections are watched, and what is sent over them."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from tidegate.http.watch import HttpWatch
from tidegate.kernel.endpoints import Endpoint, Evidence
from tidegate.kernel.probe import probe
from tidegate.model.fields import Role
from tidegate.signals.http import HttpSignal
from tidegate.signals.http_fields import CLASSES, Counter
from tidegate.signals.tcp import TcpSignal

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def failed(status: int) -> bytes:
    return b"HTTP/1.1 %d No\r\nContent-Length: 0\r\n\r\n" % status


class Watching:
    """The programs, and an endpoint that is watched."""

    def __init__(self, address: str = "127.0.0.1") -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.server = socket.socket(family)
        self.server.bind((address, 0))
        self.server.listen(16)
        self.endpoint = Endpoint(ip_address(address), self.server.getsockname()[1])
        self.tcp = TcpSignal.start(256, 4096)
        self.http = HttpWatch(self.tcp.bpf.maps, Path(probe().cgroup2 or "/"), 256)
        self.room = self.tcp.bpf.maps["pool_counts"].max_entries
        self._clients: list[socket.socket] = []

    def watch(self, timeout: float = 0.0) -> None:
        self.http.watch({self.endpoint: timeout})
        assert self.http.refused is None

    def connect(self) -> tuple[socket.socket, socket.socket]:
        client = socket.create_connection((str(self.endpoint.address), self.endpoint.port))
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        served, _ = self.server.accept()
        served.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._clients += [client, served]
        return client, served

    def responses(self) -> dict[str, int]:
        """Return what was counted since the last call, by class."""
        assert self._signal is not None
        found = dict.fromkeys(CLASSES, 0)
        for record in self._signal.read(time.monotonic()):
            assert record.endpoint == str(self.endpoint)
            assert record.role is Role.CLIENT
            for name, count in zip(CLASSES, record.counters[Counter.RESPONSES :], strict=False):
                found[name] += count
        return {name: count for name, count in found.items() if count}

    @property
    def _signal(self) -> HttpSignal | None:
        return self.http._signal

    def told(self) -> list[tuple[str, int, int]]:
        """Return evidence, code and errno of what was told since the last call."""
        return [(one.evidence.name.lower(), one.code, one.error) for one in self.evidence()]

    def evidence(self) -> list[Evidence]:
        found = self.http.endpoints.evidence()
        assert {one.endpoint for one in found} <= {self.endpoint}
        return found

    def close(self) -> None:
        for each in (*self._clients, self.server):
            each.close()
        self.http.close()
        self.tcp.close()


@pytest.fixture(params=["127.0.0.1", "::1"], ids=["IPv4", "IPv6"])
def watching(request: pytest.FixtureRequest) -> Iterator[Watching]:
    made = Watching(request.param)
    try:
        yield made
    finally:
        made.close()


def exchange(client: socket.socket, served: socket.socket, *answer: bytes, request: bytes = GET) -> None:
    """Send a request, let it be read, and send an answer in these segments, each read before the next is sent."""
    client.sendall(request)
    receive(served, len(request))
    for part in answer:
        served.sendall(part)
        receive(client, len(part))


def receive(sock: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        part = sock.recv(size - len(found))
        assert part
        found += part
    return found


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
