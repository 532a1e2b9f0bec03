# SPDX-License-Identifier: Apache-2.0
"""The server side: listens on ports of different behaviour and counts exactly what it accepted."""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
from collections import Counter
from collections.abc import Callable
from enum import StrEnum
from functools import partial

from lab.exchange import Serving
from lab.results import Transfer

BACKLOG = 4096


class Behaviour(StrEnum):
    """What a port of an upstream does with a connection.

    accept: accepts and closes at once. hold: keeps it open until the client closes. reset: waits for one byte,
    then resets without an answer. serve: answers requests (:mod:`lab.exchange`). refuse: nobody listens. hang: the
    SYN is dropped in silence. unreachable and denied: the SYN is answered by ICMP, host unreachable or
    administratively prohibited.
    """

    ACCEPT = "accept"
    HOLD = "hold"
    RESET = "reset"
    SERVE = "serve"
    REFUSE = "refuse"
    HANG = "hang"
    UNREACHABLE = "unreachable"
    DENIED = "denied"


LISTENING = (Behaviour.ACCEPT, Behaviour.HOLD, Behaviour.RESET, Behaviour.SERVE)
_VERDICTS = {
    Behaviour.HANG: ["tcp dport {port} drop"],
    Behaviour.UNREACHABLE: [
        "meta nfproto ipv4 tcp dport {port} reject with icmp type host-unreachable",
        "meta nfproto ipv6 tcp dport {port} reject with icmpv6 type addr-unreachable",
    ],
    Behaviour.DENIED: [
        "meta nfproto ipv4 tcp dport {port} reject with icmp type admin-prohibited",
        "meta nfproto ipv6 tcp dport {port} reject with icmpv6 type admin-prohibited",
    ],
}


def ruleset(ports: dict[int, Behaviour]) -> str:
    """Return the nftables rules that the ports' behaviours need, empty if none."""
    rules = [rule.format(port=port) for port, b in ports.items() for rule in _VERDICTS.get(b, [])]
    if not rules:
        return ""
    body = "\n".join(f"    {rule}" for rule in rules)
    return f"table inet lab {{\n  chain input {{\n    type filter hook input priority 0\n{body}\n  }}\n}}\n"


class Upstream:
    """Serves until :meth:`close`; IPv4 and IPv6 on the same sockets."""

    def __init__(self, ports: dict[int, Behaviour], selector: selectors.BaseSelector) -> None:
        self.accepted: Counter[int] = Counter()
        self.resets: Counter[int] = Counter()
        self.transferred: dict[int, Transfer] = {}
        self._acceptors: list[Callable[[], None]] = []
        self._selector = selector
        self._open: dict[socket.socket, Callable[[], None]] = {}
        for port, behaviour in ports.items():
            if behaviour in LISTENING:
                listener = socket.create_server(
                    ("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=BACKLOG
                )
                listener.setblocking(False)
                self.transferred[port] = Transfer()
                self._acceptors.append(self._acceptor(listener, port, behaviour))
                selector.register(listener, selectors.EVENT_READ, self._acceptors[-1])

    def accept_waiting(self) -> None:
        """Take what is established but waits to be accepted, so that the counts are complete."""
        for accept in self._acceptors:
            accept()

    def read_waiting(self) -> None:
        """Go on with every connection as far as possible, so that the counts hold all that has arrived."""
        self.accept_waiting()
        for proceed in list(self._open.values()):
            proceed()

    def close(self) -> None:
        """Close every connection that is still open."""
        for connection in list(self._open):
            self._drop(connection)

    def _acceptor(self, listener: socket.socket, port: int, behaviour: Behaviour) -> Callable[[], None]:
        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except BlockingIOError:
                    return
                self.accepted[port] += 1
                if behaviour is Behaviour.ACCEPT:
                    connection.close()
                else:
                    self._keep(connection, port, behaviour)

        return accept

    def _keep(self, connection: socket.socket, port: int, behaviour: Behaviour) -> None:
        proceed: Callable[[], None]
        if behaviour is Behaviour.SERVE:
            proceed = partial(self._serve, connection, port, Serving(connection, self.transferred[port]))
        else:
            connection.setblocking(False)
            proceed = partial(self._read, connection, port, behaviour is Behaviour.RESET)
        self._open[connection] = proceed
        self._selector.register(connection, selectors.EVENT_READ, proceed)

    def _read(self, connection: socket.socket, port: int, reset: bool) -> None:
        if connection not in self._open:  # closed since select() told of it
            return
        data = b""
        try:
            data = connection.recv(4096)
        except BlockingIOError:
            return
        except ConnectionError:
            pass
        self.transferred[port].received += len(data)
        if data and not reset:
            return
        if data:
            self._reset(connection, port)
        self._drop(connection)

    def _serve(self, connection: socket.socket, port: int, serving: Serving) -> None:
        if connection not in self._open:
            return
        events = 0
        with contextlib.suppress(ConnectionError, TimeoutError):  # the client is gone, and so is what it asked for
            events = serving.proceed()
        if serving.resets:
            self._reset(connection, port)
        if not events:
            self._drop(connection)
        elif events != self._selector.get_key(connection).events:
            self._selector.modify(connection, events, self._open[connection])

    def _reset(self, connection: socket.socket, port: int) -> None:
        # All that came is read, so it is SO_LINGER 0 that resets, and not unread data.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.resets[port] += 1

    def _drop(self, connection: socket.socket) -> None:
        del self._open[connection]
        self._selector.unregister(connection)
        connection.close()
