# SPDX-License-Identifier: Apache-2.0
"""What is asked of the generator, and what it counted; the only types that cross the workers' pipes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

#: What the application can see of a connect; the names are those of tidegate's failure reasons.
OK, REFUSED, TIMEOUT, UNREACHABLE, DENIED = "ok", "refused", "timeout", "unreachable", "denied"
EXHAUSTED, ABORTED, RESET, OTHER = "ports_exhausted", "aborted", "reset", "other"


@dataclass(frozen=True)
class Step:
    """``count`` connections to one address.

    ``give_up`` seconds after which the application stops waiting ("close", "unspec" or "sndtimeo" says how).
    ``speak`` sends one byte once connected. ``mapped`` connects to an IPv4 address through an IPv6 socket.
    ``reuse`` connects each socket first to ``reuse`` (an address that refuses) and then to the target.
    ``syn_retries`` bounds the kernel's own patience. ``hold`` keeps the connections open until they are released.
    ``bind`` is the local port, with SO_REUSEADDR; 0 leaves the choice to the kernel.
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


@dataclass(frozen=True)
class Plan:
    """Steps whose connections are mixed, at most ``parallel`` at a time, in an order fixed by ``seed``."""

    steps: tuple[Step, ...]
    parallel: int = 100
    seed: int = 1


@dataclass
class EndpointResult:
    """What happened to the connections to one endpoint, by the generator's own count and clock (seconds)."""

    connects: int = 0
    established: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    handshakes: list[float] = field(default_factory=list)

    def end(self, outcome: str) -> None:
        """Count one connection that came to its end."""
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1

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
                for outcome, n in result.outcomes.items():
                    into.outcomes[outcome] = into.outcomes.get(outcome, 0) + n
                into.handshakes += result.handshakes
        return total


def endpoint_text(address: str, port: int) -> str:
    """Write an endpoint as people do."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def dump(value: Plan | Results) -> str:
    """Write one line of JSON."""
    return msgspec.json.encode(value).decode()


def load_plan(line: str) -> Plan:
    """Read what :func:`dump` wrote of a plan."""
    return msgspec.json.decode(line, type=Plan)


def load_results(line: str) -> Results:
    """Read what :func:`dump` wrote of results."""
    return msgspec.json.decode(line, type=Results)
