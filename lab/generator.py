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
from typing import NamedTuple

from lab import results as r
from lab.exchange import Asking
from lab.results import EndpointResult, Exchange, Plan, Results, Step, endpoint_text

TCP_SYNCNT, TCP_INFO = 7, 11
SYN_SENT, CLOSE_WAIT = 2, 8  # tcp_info's first byte is the state, as in net/tcp_states.h
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
    established: float | None = None
    asking: Asking | None = None
    counted: bool = False


class _Blocked(NamedTuple):
    """What became of a connect that blocked a thread; who closed first and the lifetime if it was established."""

    error: int
    handshake: float
    closed_by: str
    lifetime: float


class Generator:
    """One run of a plan, and the connections that it holds."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._selector = selectors.EpollSelector()
        self._waiting: dict[int, _Connection] = {}
        self._blocking: dict[Future[_Blocked], EndpointResult] = {}
        self._threads = ThreadPoolExecutor(BLOCKING)
        self._held: list[_Connection] = []
        self.results = Results()

    def run(self) -> Results:
        """Do all steps, mixed; connections that are held are closed by :meth:`close`."""
        steps = [step for step in self._plan.steps for _ in range(step.count)]
        random.Random(self._plan.seed).shuffle(steps)
        todo = iter(steps)
        pauses = sum(step.pause * step.rounds for step in steps)
        deadline = time.monotonic() + LONGEST + len(steps) / 100 + pauses
        while self._fill(todo) or self._waiting or self._blocking:
            self._turn(deadline)
        return self.results

    def exchange(self, exchange: Exchange) -> Results:
        """Carry data over all connections that are held, and return what this alone has added."""
        self.results = Results()
        held, self._held = self._held, []
        for connection in held:
            connection.result = self.results.of(endpoint_text(connection.step.address, connection.step.port))
            self._waiting[connection.socket.fileno()] = connection
            self._selector.register(connection.socket, selectors.EVENT_READ, connection)
            self._ask(connection, exchange)
        deadline = time.monotonic() + LONGEST + exchange.pause * exchange.rounds
        while self._waiting:
            self._turn(deadline)
        return self.results

    def close(self) -> Results:
        """Close the connections that were held, and return what this has added."""
        self.results = Results()
        for held in self._held:
            held.result = self.results.of(endpoint_text(held.step.address, held.step.port))
            self._close(held, "client")
        self._held.clear()
        self._selector.close()
        self._threads.shutdown()
        return self.results

    def _turn(self, deadline: float) -> None:
        """Wait for what happens next, and act on it."""
        if time.monotonic() > deadline:
            raise TimeoutError(f"generator: {len(self._waiting)} connections hang after {LONGEST} s")
        for key, events in self._selector.select(self._patience()):
            self._ready(key.data, events)
        self._give_up_late()
        self._gave_up_blocking()
        self._end_pauses()

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
            error, took, by, lifetime = future.result()
            if error == 0:
                result.established += 1
                result.handshakes.append(took)
                result.close(by, lifetime)
            # connect(2): a send timeout during a connect is EINPROGRESS; the application then closes.
            given_up = error == errno.EINPROGRESS
            result.end(r.OK if error == 0 else r.ABORTED if given_up else REASONS.get(error, r.OTHER))

    def _ready(self, connection: _Connection, events: int) -> None:
        if connection.socket.fileno() not in self._waiting:
            return
        if connection.established is None:
            self._connected(connection)
        elif connection.asking is not None:
            self._proceed(connection, connection.asking)
        elif events & selectors.EVENT_READ:
            self._finished(connection)

    def _connected(self, connection: _Connection) -> None:
        now = time.perf_counter()
        error = connection.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            self._end(connection, REASONS.get(error, r.OTHER))
            return
        connection.established = now
        connection.result.established += 1
        connection.result.handshakes.append(now - connection.began)
        step = connection.step
        if step.exchange is not None:
            self._ask(connection, step.exchange)
            return
        if step.hold:
            self._hold(connection)
            return
        if step.speak:
            connection.result.sent += connection.socket.send(b"?")
        self._selector.modify(connection.socket, selectors.EVENT_READ, connection)

    def _finished(self, connection: _Connection) -> None:
        try:
            data = connection.socket.recv(4096)
        except OSError as error:
            self._end(connection, REASONS.get(error.errno or 0, r.OTHER))
            return
        connection.result.received += len(data)
        if not data:
            self._end(connection, r.OK, by="server")

    def _ask(self, connection: _Connection, exchange: Exchange) -> None:
        connection.asking = Asking(connection.socket, connection.result, exchange)
        self._proceed(connection, connection.asking)

    def _proceed(self, connection: _Connection, asking: Asking) -> None:
        try:
            events = asking.proceed()
        except OSError as error:
            self._end(connection, REASONS.get(error.errno or 0, r.OTHER))
            return
        if events:
            if events != self._selector.get_key(connection.socket).events:
                self._selector.modify(connection.socket, events, connection)
        elif asking.ended_by_server:
            self._end(connection, r.OK if asking.complete else r.OTHER, by="server")
        elif asking.closes:
            self._end(connection, r.OK, by="client")
        else:
            self._hold(connection)

    def _end_pauses(self) -> None:
        now = time.perf_counter()
        for connection in list(self._waiting.values()):
            asking = connection.asking
            if asking is not None and asking.due is not None and asking.due <= now:
                self._proceed(connection, asking)

    def _patience(self) -> float:
        waiting = self._waiting.values()
        hurry = bool(self._blocking) or any(c.step.give_up is not None for c in waiting)
        patience = 0.005 if hurry else 0.2
        dues = [c.asking.due for c in waiting if c.asking is not None and c.asking.due is not None]
        return max(min(patience, min(dues) - time.perf_counter()), 0) if dues else patience

    def _give_up_late(self) -> None:
        now = time.perf_counter()
        for connection in list(self._waiting.values()):
            step = connection.step
            if step.give_up is None or connection.established is not None or now - connection.began < step.give_up:
                continue
            if connection.socket.getsockopt(socket.IPPROTO_TCP, TCP_INFO, 1)[0] != SYN_SENT:
                continue  # it has been decided since the last look; select() will tell
            if step.give_up_by == "unspec":
                _disconnect(connection.socket)
            self._end(connection, r.ABORTED)

    def _end(self, connection: _Connection, outcome: str, by: str = "") -> None:
        """Close a connection; ``by`` is who closed first if not the outcome says it all."""
        self._forget(connection)
        self._count(connection, outcome)
        self._close(connection, by or outcome)

    def _close(self, connection: _Connection, by: str) -> None:
        connection.socket.close()
        if connection.established is not None:
            connection.result.close(by, time.perf_counter() - connection.established)

    def _hold(self, connection: _Connection) -> None:
        self._forget(connection)
        self._count(connection, r.OK)
        self._held.append(connection)

    def _count(self, connection: _Connection, outcome: str) -> None:
        if not connection.counted or outcome != r.OK:
            connection.result.end(outcome)
        connection.counted = True

    def _forget(self, connection: _Connection) -> None:
        if self._waiting.pop(connection.socket.fileno(), None) is not None:
            self._selector.unregister(connection.socket)


def _connect_and_close(made: socket.socket, address: tuple[str, int]) -> _Blocked:
    """Connect, blocking, then close."""
    began = time.perf_counter()
    error = made.connect_ex(address)
    established = time.perf_counter()
    by = "server" if made.getsockopt(socket.IPPROTO_TCP, TCP_INFO, 1)[0] == CLOSE_WAIT else "client"
    made.close()
    return _Blocked(error, established - began, by, time.perf_counter() - established)


def _disconnect(made: socket.socket) -> None:
    """connect(AF_UNSPEC), which Python's socket module doesn't offer."""
    libc = ctypes.CDLL(None, use_errno=True)
    address = struct.pack("H14x", socket.AF_UNSPEC)
    if libc.connect(made.fileno(), address, len(address)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
