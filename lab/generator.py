# SPDX-License-Identifier: Apache-2.0
"""Opens connections by a plan and counts exactly what became of each, as an application sees it."""

from __future__ import annotations

import ctypes
import errno
import os
import random
import selectors
import socket
import struct
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from lab import results as r
from lab.results import EndpointResult, Plan, Results, Step, endpoint_text

TCP_SYNCNT, TCP_INFO = 7, 11
SYN_SENT = 2  # tcp_info's first byte is the state, as in net/tcp_states.h
REASONS = {
    errno.ECONNREFUSED: r.REFUSED,
    errno.ETIMEDOUT: r.TIMEOUT,
    errno.EHOSTUNREACH: r.UNREACHABLE,
    errno.ENETUNREACH: r.UNREACHABLE,
    errno.EACCES: r.DENIED,
    errno.EPERM: r.DENIED,
    errno.EADDRNOTAVAIL: r.EXHAUSTED,
    errno.ECONNRESET: r.RESET,
}
LONGEST = 60.0
BLOCKING = 16  # connects with SO_SNDTIMEO at a time: each blocks a thread


@dataclass
class _Connection:
    step: Step
    socket: socket.socket
    result: EndpointResult
    began: float
    established: bool = False


class Generator:
    """One run of a plan."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._selector = selectors.EpollSelector()
        self._waiting: dict[int, _Connection] = {}
        self._blocking: dict[Future[tuple[int, float]], EndpointResult] = {}
        self._threads = ThreadPoolExecutor(BLOCKING)
        self._held: list[socket.socket] = []
        self.results = Results()

    def run(self) -> Results:
        """Do all steps, mixed; connections that are held are closed by :meth:`close`."""
        steps = [step for step in self._plan.steps for _ in range(step.count)]
        random.Random(self._plan.seed).shuffle(steps)
        todo = iter(steps)
        deadline = time.monotonic() + LONGEST + len(steps) / 100
        while self._fill(todo) or self._waiting or self._blocking:
            if time.monotonic() > deadline:
                raise TimeoutError(f"generator: {len(self._waiting)} connections hang after {LONGEST} s")
            for key, events in self._selector.select(self._patience()):
                self._ready(key.data, events)
            self._give_up_late()
            self._gave_up_blocking()
        return self.results

    def close(self) -> None:
        """Close the connections that were held."""
        for held in self._held:
            held.close()
        self._held.clear()
        self._selector.close()
        self._threads.shutdown()

    def _fill(self, todo: Iterator[Step]) -> bool:
        """Begin connections up to the plan's parallelism; tell whether there may be more."""
        while len(self._waiting) + len(self._blocking) < self._plan.parallel:
            step = next(todo, None)
            if step is None:
                return False
            self._begin(step)
        return True

    def _begin(self, step: Step) -> None:
        family = socket.AF_INET6 if ":" in step.address or step.mapped else socket.AF_INET
        made = socket.socket(family, socket.SOCK_STREAM)
        made.setsockopt(socket.IPPROTO_TCP, TCP_SYNCNT, step.syn_retries)
        if step.bind:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(("", step.bind))
        address = f"::ffff:{step.address}" if step.mapped else step.address
        if step.reuse is not None:
            self._refused_first(made, *step.reuse, mapped=step.mapped)
        if step.give_up_by == "sndtimeo" and step.give_up is not None:
            self._give_up_blocking(step, made, address)
            return
        made.setblocking(False)
        result = self.results.of(endpoint_text(step.address, step.port))
        result.connects += 1
        connection = _Connection(step, made, result, time.perf_counter())
        error = made.connect_ex((address, step.port))
        if error not in (0, errno.EINPROGRESS):
            self._end(connection, REASONS.get(error, r.OTHER))
            return
        self._waiting[made.fileno()] = connection
        self._selector.register(made, selectors.EVENT_WRITE, connection)

    def _refused_first(self, made: socket.socket, address: str, port: int, *, mapped: bool) -> None:
        result = self.results.of(endpoint_text(address, port))
        result.connects += 1
        error = made.connect_ex((f"::ffff:{address}" if mapped else address, port))
        result.end(REASONS.get(error, r.OTHER))

    def _give_up_blocking(self, step: Step, made: socket.socket, address: str) -> None:
        assert step.give_up is not None
        seconds, microseconds = divmod(int(step.give_up * 1e6), 1_000_000)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", seconds, microseconds))
        result = self.results.of(endpoint_text(step.address, step.port))
        result.connects += 1
        # In a thread: here it would hold up the others, and their durations would be wrong.
        self._blocking[self._threads.submit(_connect_and_close, made, (address, step.port))] = result

    def _gave_up_blocking(self) -> None:
        for future in [future for future in self._blocking if future.done()]:
            result = self._blocking.pop(future)
            error, took = future.result()
            if error == 0:
                result.established += 1
                result.handshakes.append(took)
            # connect(2): a send timeout during a connect is EINPROGRESS; the application then closes.
            given_up = error == errno.EINPROGRESS
            result.end(r.OK if error == 0 else r.ABORTED if given_up else REASONS.get(error, r.OTHER))

    def _ready(self, connection: _Connection, events: int) -> None:
        if connection.socket.fileno() not in self._waiting:
            return
        if not connection.established:
            self._connected(connection)
        elif events & selectors.EVENT_READ:
            self._finished(connection)

    def _connected(self, connection: _Connection) -> None:
        took = time.perf_counter() - connection.began
        error = connection.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            self._end(connection, REASONS.get(error, r.OTHER))
            return
        connection.established = True
        connection.result.established += 1
        connection.result.handshakes.append(took)
        if connection.step.hold:
            self._forget(connection)
            connection.result.end(r.OK)
            self._held.append(connection.socket)
            return
        if connection.step.speak:
            connection.socket.send(b"?")
        self._selector.modify(connection.socket, selectors.EVENT_READ, connection)

    def _finished(self, connection: _Connection) -> None:
        try:
            data = connection.socket.recv(4096)
        except OSError as error:
            self._end(connection, REASONS.get(error.errno or 0, r.OTHER))
            return
        if not data:
            self._end(connection, r.OK)

    def _patience(self) -> float:
        hurry = bool(self._blocking) or any(c.step.give_up is not None for c in self._waiting.values())
        return 0.005 if hurry else 0.2

    def _give_up_late(self) -> None:
        now = time.perf_counter()
        for connection in list(self._waiting.values()):
            step = connection.step
            if step.give_up is None or connection.established or now - connection.began < step.give_up:
                continue
            if connection.socket.getsockopt(socket.IPPROTO_TCP, TCP_INFO, 1)[0] != SYN_SENT:
                continue  # it has been decided since the last look; select() will tell
            if step.give_up_by == "unspec":
                _disconnect(connection.socket)
            self._end(connection, r.ABORTED)

    def _end(self, connection: _Connection, outcome: str) -> None:
        self._forget(connection)
        connection.socket.close()
        connection.result.end(outcome)

    def _forget(self, connection: _Connection) -> None:
        if self._waiting.pop(connection.socket.fileno(), None) is not None:
            self._selector.unregister(connection.socket)


def _connect_and_close(made: socket.socket, address: tuple[str, int]) -> tuple[int, float]:
    """Connect, blocking; return the errno and the seconds it took."""
    began = time.perf_counter()
    error = made.connect_ex(address)
    took = time.perf_counter() - began
    made.close()
    return error, took


def _disconnect(made: socket.socket) -> None:
    """connect(AF_UNSPEC), which Python's socket module doesn't offer."""
    libc = ctypes.CDLL(None, use_errno=True)
    address = struct.pack("H14x", socket.AF_UNSPEC)
    if libc.connect(made.fileno(), address, len(address)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
