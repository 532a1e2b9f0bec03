# SPDX-License-Identifier: Apache-2.0
"""Both sides of a connection that carries data: a request, then a response, as often as the client likes.

Each side counts its payload as send() and recv() returned it, so the counts are right whatever the network does.
"""

from __future__ import annotations

import selectors
import socket
import time
from enum import IntEnum

from lab.results import HEADER, EndpointResult, Exchange, Transfer

_BLOCK = memoryview(bytes(1 << 18))
#: What a side waits for: selector events, or nothing more.
_OVER = 0


class Ending(IntEnum):
    """What the server does after a request: answer; answer and close; reset without an answer."""

    ANSWER = 0
    CLOSE = 1
    RESET = 2


_ENDINGS = {"client": Ending.ANSWER, "server": Ending.CLOSE, "reset": Ending.RESET}


def set_up(connection: socket.socket) -> None:
    """Make a socket ready to exchange: it never blocks, and a last short segment doesn't wait for an ACK."""
    connection.setblocking(False)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class Asking:
    """The client's side. ``due`` is when the pause before the next request ends (perf_counter), else None."""

    def __init__(self, connection: socket.socket, count: EndpointResult, exchange: Exchange) -> None:
        self.due: float | None = None
        self.ended_by_server = False
        self._connection, self._count, self._exchange = connection, count, exchange
        self._left = exchange.rounds
        self._unsent = self._missing = 0
        self._head = b""
        set_up(connection)
        self._ask()

    @property
    def closes(self) -> bool:
        """Tell whether the connection is to be closed after this exchange."""
        return self._exchange.closes is not None

    @property
    def complete(self) -> bool:
        """Tell whether every response has come in full."""
        return not (self._left or self._unsent or self._missing)

    def proceed(self) -> int:
        """Go on as far as possible; return the events to wait for, 0 at the end. A reset is raised."""
        try:
            while not self.ended_by_server:
                if self._unsent:
                    self._send()
                elif self._missing or (self.due is not None and time.perf_counter() < self.due):
                    self._receive()
                elif self._left:
                    self._ask()
                elif self._exchange.closes in ("server", "reset"):
                    self._receive()
                else:
                    return _OVER
        except BlockingIOError:
            return selectors.EVENT_WRITE if self._unsent else selectors.EVENT_READ
        return _OVER

    def _ask(self) -> None:
        self.due = None
        self._left -= 1
        asked = self._exchange
        ending = Ending.ANSWER if self._left or asked.closes is None else _ENDINGS[asked.closes]
        self._head = HEADER.pack(asked.request, asked.response, ending)
        self._unsent = asked.request
        self._missing = 0 if ending is Ending.RESET else asked.response

    def _send(self) -> None:
        head = self._head[self._exchange.request - self._unsent :]
        sent = self._connection.sendmsg([head, _BLOCK[: self._unsent - len(head)]])
        self._unsent -= sent
        self._count.sent += sent
        self._after_a_round()

    def _receive(self) -> None:
        received = len(self._connection.recv(min(max(self._missing, 1), len(_BLOCK))))
        self.ended_by_server = not received
        if received > self._missing:
            raise RuntimeError("lab: the server answered more than it was asked for; is the port one that serves?")
        self._missing -= received
        self._count.received += received
        if received:
            self._after_a_round()

    def _after_a_round(self) -> None:
        if self._left and not self._unsent and not self._missing and self._exchange.pause:
            self.due = time.perf_counter() + self._exchange.pause


class Serving:
    """The server's side. ``resets`` tells that the client has asked for a reset instead of an answer."""

    def __init__(self, connection: socket.socket, count: Transfer) -> None:
        self.resets = False
        self._connection, self._count = connection, count
        self._head = b""
        self._unread = HEADER.size
        self._unsent = 0
        self._ending = Ending.ANSWER
        set_up(connection)

    def proceed(self) -> int:
        """Go on as far as possible; return the events to wait for, 0 once the connection is to be closed."""
        try:
            while True:
                if self._unsent:
                    self._send()
                elif not self._receive():
                    return _OVER
                if self._unread == 0 and self._unsent == 0:
                    self._count.requests += 1
                    if self._ending is Ending.CLOSE:
                        return _OVER
                    self._head, self._unread = b"", HEADER.size
        except BlockingIOError:
            return selectors.EVENT_WRITE if self._unsent else selectors.EVENT_READ

    def _receive(self) -> bool:
        """Read some of a request; tell whether there is to be an answer."""
        data = self._connection.recv(min(self._unread, len(_BLOCK)))
        self._unread -= len(data)
        self._count.received += len(data)
        if len(self._head) < HEADER.size:
            self._head += data
            if self._unread == 0:
                self._unread = HEADER.unpack(self._head)[0] - HEADER.size
        if data and self._unread == 0:
            _, self._unsent, ending = HEADER.unpack(self._head)
            self._ending = Ending(ending)
            self.resets = self._ending is Ending.RESET
        return bool(data) and not self.resets

    def _send(self) -> None:
        sent = self._connection.send(_BLOCK[: self._unsent])
        self._unsent -= sent
        self._count.sent += sent
