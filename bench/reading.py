# SPDX-License-Identifier: Apache-2.0
"""What a read costs: the walk over open connections, and the rows with their decoding."""

from __future__ import annotations

import contextlib
import multiprocessing
import resource
import socket
import statistics
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from bench.report import Figure
from tidegate.signals.tcp import TcpSignal

ROUNDS, SOCKETS, ROWS = 9, 100_000, 10_000


@contextlib.contextmanager
def listener(port: int = 0) -> Iterator[socket.socket]:
    """Listen on every loopback address."""
    with socket.create_server(("127.0.0.1", port), backlog=4096) as probe:
        port = probe.getsockname()[1]
    with socket.create_server(("0.0.0.0", port), backlog=4096) as server:
        yield server


def address(n: int, port: int) -> tuple[str, int]:
    """Return the n-th address of the loopback network."""
    return f"127.{1 + n // 65_025}.{n // 255 % 255}.{1 + n % 255}", port


def connection(server: socket.socket, n: int) -> tuple[socket.socket, socket.socket]:
    """Open one connection to the n-th address; return both ends."""
    client = socket.create_connection(address(n, server.getsockname()[1]))
    return client, server.accept()[0]


def timed(work: Callable[[], object]) -> float:
    """Return the milliseconds that a call takes."""
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1e3


def spread(values: list[float]) -> str:
    """Write a median with the least and the most."""
    return f"{statistics.median(values):.0f} ms ({min(values):.0f} to {max(values):.0f})"


def hold(count: int, orders: Connection, port: int) -> None:
    """Hold open connections, and use each at every order, until the pipe ends; answers when all is done."""
    with listener(port) as server:
        pairs = [connection(server, n % 16) for n in range(count)]
        for client, _ in pairs:  # so that none of them stays in TIME_WAIT
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with contextlib.suppress(EOFError):
            while True:
                orders.send(None)
                orders.recv()
                for client, end in pairs:
                    client.send(b"x")
                    end.recv(1)


@contextlib.contextmanager
def held(sockets: int, ports: Sequence[int] = ()) -> Iterator[Callable[[], None]]:
    """Have other processes hold so many ends of connections, to these ports if any are given, a process for each.

    What is yielded has all of them used once.
    """
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 200
    ports = ports or [0] * -(-sockets // most)
    count = len(ports)
    pipes = []
    for port in ports:
        pipe, theirs = multiprocessing.Pipe()
        process = multiprocessing.Process(target=hold, args=(sockets // count // 2, theirs, port))
        process.start()
        theirs.close()
        pipe.recv()
        pipes.append((pipe, process))

    def use() -> None:
        for pipe, _ in pipes:
            pipe.send(None)
            pipe.recv()

    yield use
    for pipe, process in pipes:
        process.kill()  # closing one by one would take as long as opening them
        process.join()
        pipe.close()


def figures(_: Path) -> list[Figure]:
    """Measure both."""
    signal = TcpSignal.start(max_rows=2 * ROWS, max_sockets=2 * SOCKETS)
    try:
        return [*walk(signal), rows(signal)]
    finally:
        signal.close()


def walk(signal: TcpSignal) -> Iterator[Figure]:
    """Walk over connections that do nothing, and over some that have all done something."""
    with held(SOCKETS) as use:
        signal.read()
        idle = [timed(signal.walk) for _ in range(ROUNDS)]
        busy = []
        for _ in range(ROUNDS):
            use()
            busy.append(timed(signal.walk))
        sockets = signal.sockets
    yield Figure(
        "Walk over 100,000 open sockets",
        spread(idle),
        "150 ms",
        f"{ROUNDS} walks over {sockets} tracked ends of loopback connections that do nothing meanwhile; "
        f"where each has sent or received since the last walk: {spread(busy)}",
    )


def rows(signal: TcpSignal) -> Figure:
    """Read rows that all have counts and each of the three histograms."""
    took, found = [], 0
    with listener() as server:
        for _ in range(ROUNDS):
            signal.read()
            for n in range(ROWS):
                for end in connection(server, n):
                    end.close()
            signal.walk()
            began = time.perf_counter()
            found = len(signal.read())
            took.append((time.perf_counter() - began) * 1e3)
    return Figure(
        "Read and decode 10,000 rows",
        spread(took),
        "30 ms",
        f"{ROUNDS} reads of {found} rows, each with counts and three histograms; the swap of the tables and the "
        "walk over what is left of the connections included",
    )
