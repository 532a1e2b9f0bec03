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

BACKLOG = 4096


class Behaviour(StrEnum):
    """What a port of an upstream does with a connection.

    accept: accepts and closes at once. hold: keeps it open until the client closes. reset: waits for one byte,
    then resets without an answer. refuse: nobody listens. hang: the SYN is dropped in silence. unreachable and
    denied: the SYN is answered by ICMP, host unreachable or administratively prohibited.
    """

    ACCEPT = "accept"
    HOLD = "hold"
    RESET = "reset"
    REFUSE = "refuse"
    HANG = "hang"
    UNREACHABLE = "unreachable"
    DENIED = "denied"


LISTENING = (Behaviour.ACCEPT, Behaviour.HOLD, Behaviour.RESET)
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
        self._acceptors: list[Callable[[], None]] = []
        self._selector = selector
        self._open: set[socket.socket] = set()
        for port, behaviour in ports.items():
            if behaviour in LISTENING:
                listener = socket.create_server(
                    ("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=BACKLOG
                )
                listener.setblocking(False)
                self._acceptors.append(self._acceptor(listener, port, behaviour))
                selector.register(listener, selectors.EVENT_READ, self._acceptors[-1])

    def accept_waiting(self) -> None:
        """Take what is established but waits to be accepted, so that the counts are complete."""
        for accept in self._acceptors:
            accept()

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
                    self._keep(connection, port, reset=behaviour is Behaviour.RESET)

        return accept

    def _keep(self, connection: socket.socket, port: int, reset: bool) -> None:
        connection.setblocking(False)
        self._open.add(connection)
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._read(connection, port, reset))

    def _read(self, connection: socket.socket, port: int, reset: bool) -> None:
        data = b""
        with contextlib.suppress(ConnectionError):
            data = connection.recv(4096)
        if data and not reset:
            return
        if data:  # all that came is read, so it is SO_LINGER 0 that resets, and not unread data
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.resets[port] += 1
        self._drop(connection)

    def _drop(self, connection: socket.socket) -> None:
        self._open.discard(connection)
        self._selector.unregister(connection)
        connection.close()
