# SPDX-License-Identifier: Apache-2.0
"""The TCP programs for the tests: some of them attached, and what they counted of one port."""

from __future__ import annotations

import socket
from collections.abc import Iterator

from tidegate.kernel.objects import BpfObject, Link
from tidegate.model.fields import Role
from tidegate.signals.tcp import TcpSignal
from tidegate.signals.tcp_fields import CLOSERS, FAILURES, RESETS, RETRANSMITS, Counter

STATE, AGAIN, DESTROYED = "tcp_state", "tcp_state_again", "tcp_destroyed"
GROUPS = (
    (Counter.FAILURES, FAILURES),
    (Counter.CLOSES, CLOSERS),
    (Counter.RETRANSMITS, RETRANSMITS),
    (Counter.RESETS, RESETS),
)


class Programs:
    """The TCP object with only some of its programs attached (all, where none is named); a context manager."""

    def __init__(self, *names: str) -> None:
        self._bpf = BpfObject.named("tcp").load()
        self._links: dict[str, Link] = {}
        self.attach(*(names or (p.name for p in self._bpf.programs.values() if not p.is_iterator)))
        self.signal = TcpSignal(self._bpf)

    def __enter__(self) -> Programs:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach(*self._links)
        self._bpf.close()

    def attach(self, *names: str) -> None:
        """Attach these programs."""
        for name in names:
            self._links[name] = self._bpf.programs[name].attach()

    def detach(self, *names: str) -> None:
        """End the attachment of these programs."""
        for name in names:
            self._links[name].close()

    def rows(self, port: int) -> dict[Role, dict[str, int]]:
        """Return what was counted of one port since the last time, by name; what is 0 is left out.

        Arrays are like ``closes.local``; sums of times are left out.
        """
        found = {r.role: r.counters for r in self.signal.read() if r.endpoint.endswith(f":{port}")}
        return {role: dict(named(counters)) for role, counters in found.items()}

    def counts(self, port: int) -> dict[Role, dict[str, int]]:
        """Return the same without traffic and without who closed."""
        wanted = ("connects", "established", "adopted", "closed", "failures.")
        return {
            role: {name: n for name, n in row.items() if name.startswith(wanted)}
            for role, row in self.rows(port).items()
        }

    @property
    def late(self) -> int:
        """Changes of state that were made up for."""
        return self.signal.losses()["tcp_late"]

    @property
    def ends_unseen(self) -> int:
        """Ends of connections that were not seen at all."""
        return self.signal.losses()["tcp_end_unseen"]


def named(counters: tuple[int, ...]) -> Iterator[tuple[str, int]]:
    """Yield the counters that are not 0, by name."""
    names = {int(c): c.name.lower() for c in Counter if not c.name.endswith("_NS")}
    for first, members in GROUPS:
        names |= {first + i: f"{Counter(first).name.lower()}.{member}" for i, member in enumerate(members)}
    for place, name in names.items():
        if counters[place]:
            yield name, counters[place]


def connect(server: socket.socket) -> tuple[socket.socket, socket.socket]:
    """Open one connection; return both ends."""
    client = socket.create_connection(server.getsockname()[:2])
    return client, server.accept()[0]


def counters(connects: int, established: int, closed: int, **failures: int) -> dict[str, int]:
    """Return what is expected of a row, as :meth:`Programs.counts` does."""
    found = {"connects": connects, "established": established, "closed": closed}
    found |= {f"failures.{reason}": n for reason, n in failures.items()}
    return {name: n for name, n in found.items() if n}
