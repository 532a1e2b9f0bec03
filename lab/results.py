# SPDX-License-Identifier: Apache-2.0
"""What is asked of the generator, and what it counted; the only types that cross the workers' pipes."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import msgspec

#: What the application can see of a connect; the names are those of tidegate's failure reasons.
OK, REFUSED, TIMEOUT, UNREACHABLE, DENIED = "ok", "refused", "timeout", "unreachable", "denied"
EXHAUSTED, ABORTED, RESET, OTHER = "ports_exhausted", "aborted", "reset", "other"

#: How a request begins: its own size with these bytes, the size of the response, and what follows the response.
HEADER = struct.Struct("!IIB")

#: Who ends a connection first; a reset comes from the server, instead of the last response.
Closer = Literal["client", "server", "reset"]


@dataclass(frozen=True)
class Exchange:
    """``rounds`` requests of ``request`` bytes, each answered by ``response`` bytes, ``pause`` seconds apart.

    Then ``closes`` ends the connection; with None it stays open. For ports that serve. A response of 0 bytes isn't
    waited for. Nobody repeats a reset that is lost: the client would wait for ever.
    """

    request: int
    response: int
    rounds: int = 1
    pause: float = 0.0
    closes: Closer | None = None

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.request < HEADER.size or self.response < 0:
            raise ValueError(f"lab: expected a round or more of {HEADER.size} bytes or more, found {self}")


@dataclass(frozen=True)
class Step:
    """``count`` connections to one address.

    ``give_up`` seconds after which the application stops waiting ("close", "unspec" or "sndtimeo" says how).
    ``speak`` sends one byte once connected. ``mapped`` connects to an IPv4 address through an IPv6 socket.
    ``reuse`` connects each socket first to ``reuse`` (an address that refuses) and then to the target.
    ``syn_retries`` bounds the kernel's own patience. ``hold`` keeps the connections open until they are released.
    ``bind`` is the local port, with SO_REUSEADDR; 0 leaves the choice to the kernel.
    With ``rounds`` each connection carries data, as in :class:`Exchange`, before ``closes`` ends it or it is held.
    """

    address: str
    port: int
    count: int
    give_up: float | None = None
    give_up_by: str = "close"
    speak: bool = False
    mapped: bool = False
    reuse: tuple[str, int] | None = None
    syn_retries: int = 1
    hold: bool = False
    bind: int = 0
    request: int = HEADER.size
    response: int = 0
    rounds: int = 0
    pause: float = 0.0
    closes: Closer = "client"

    def __post_init__(self) -> None:
        if self.rounds and (self.speak or self.give_up_by == "sndtimeo"):
            raise ValueError(f"lab: expected rounds without speak and sndtimeo, found {self}")
        _ = self.exchange

    @property
    def exchange(self) -> Exchange | None:
        """What each connection carries, None if nothing."""
        if not self.rounds:
            return None
        closes = None if self.hold else self.closes
        return Exchange(self.request, self.response, self.rounds, self.pause, closes)


@dataclass(frozen=True)
class Plan:
    """Steps whose connections are mixed, at most ``parallel`` at a time, in an order fixed by ``seed``."""

    steps: tuple[Step, ...]
    parallel: int = 100
    seed: int = 1


@dataclass
class EndpointResult:
    """What happened to the connections to one endpoint, by the generator's own count and clock (seconds).

    ``sent`` and ``received`` are bytes of payload. ``lifetimes`` are from established to closed, and ``closed``
    says who was first, "client", "server" or "reset", or how else it ended; both of what has been closed so far.
    A connection that is held has ended ``ok``; one that is reset later is also counted as ``reset``.
    """

    connects: int = 0
    established: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    handshakes: list[float] = field(default_factory=list)
    sent: int = 0
    received: int = 0
    lifetimes: list[float] = field(default_factory=list)
    closed: dict[str, int] = field(default_factory=dict)

    def end(self, outcome: str) -> None:
        """Count one connection that came to its end."""
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1

    def close(self, by: str, lifetime: float) -> None:
        """Count one connection that had been established and was closed."""
        self.closed[by] = self.closed.get(by, 0) + 1
        self.lifetimes.append(lifetime)

    def failures(self) -> dict[str, int]:
        """Return the connections that came to nothing, by reason."""
        return {outcome: n for outcome, n in self.outcomes.items() if outcome != OK and n}


@dataclass
class Results:
    """The results by endpoint, written as ``10.0.0.6:5000`` or ``[fd00::6]:5000``."""

    endpoints: dict[str, EndpointResult] = field(default_factory=dict)

    def of(self, endpoint: str) -> EndpointResult:
        """Return the result of one endpoint, a new one if there was none."""
        return self.endpoints.setdefault(endpoint, EndpointResult())

    @classmethod
    def sum(cls, several: Iterable[Results]) -> Results:
        """Add up what several generators counted."""
        total = cls()
        for results in several:
            for name, result in results.endpoints.items():
                into = total.of(name)
                into.connects += result.connects
                into.established += result.established
                _add(into.outcomes, result.outcomes)
                into.handshakes += result.handshakes
                into.sent += result.sent
                into.received += result.received
                into.lifetimes += result.lifetimes
                _add(into.closed, result.closed)
        return total


@dataclass
class Transfer:
    """What a port of an upstream has read and sent, bytes of payload, and the requests it has answered in full."""

    received: int = 0
    sent: int = 0
    requests: int = 0


def _add(into: dict[str, int], more: dict[str, int]) -> None:
    for key, n in more.items():
        into[key] = into.get(key, 0) + n


def endpoint_text(address: str, port: int) -> str:
    """Write an endpoint as people do."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def dump(value: Plan | Exchange | Results | dict[int, Transfer]) -> str:
    """Write one line of JSON."""
    return msgspec.json.encode(value).decode()


def load_plan(line: str) -> Plan:
    """Read what :func:`dump` wrote of a plan."""
    return msgspec.json.decode(line, type=Plan)


def load_exchange(line: str) -> Exchange:
    """Read what :func:`dump` wrote of an exchange."""
    return msgspec.json.decode(line, type=Exchange)


def load_transfers(line: str) -> dict[int, Transfer]:
    """Read what :func:`dump` wrote of transfers by port."""
    return msgspec.json.decode(line, type=dict[int, Transfer])


def load_results(line: str) -> Results:
    """Read what :func:`dump` wrote of results."""
    return msgspec.json.decode(line, type=Results)
