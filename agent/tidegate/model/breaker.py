# SPDX-License-Identifier: Apache-2.0
"""What flows through the circuit breaker: what happened to endpoints, what follows, and what is shown of it.

Times are CLOCK_MONOTONIC in seconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum, StrEnum

import msgspec

from tidegate.model.driver import DriverRow

Number = float | int | str


class Kind(StrEnum):
    """What happened."""

    HTTP = "http"  # an answer with a status
    ANSWERED = "answered"  # an answer whose status can't be read
    CONNECT_OK = "connect_ok"
    CONNECT_REFUSED = "connect_refused"
    CONNECT_TIMEOUT = "connect_timeout"
    CONNECT_UNREACHABLE = "connect_unreachable"
    RESET = "reset"
    HTTP_TIMEOUT = "http_timeout"  # a request without an answer
    LOCAL_FAULT = "local_fault"  # this node's own; nobody is charged
    TICK = "tick"  # time passes


class Event(msgspec.Struct, frozen=True, gc=False):
    """One thing that happened to an endpoint, or ``count`` of them at once.

    ``code`` is the HTTP status; a connect or a timeout may carry one too, which decides where errors aren't split.
    ``started`` is when the connect or the request began, ``attempt`` what tells connections apart (a socket's
    cookie), ``seconds`` how long the answer took; each None where it isn't known. ``run`` is for a sender that
    tells failures at once and successes in sums: how many failures in a row it has seen, this one among them.
    """

    pool: str
    endpoint: str
    kind: Kind
    code: int | None = None
    started: float | None = None
    attempt: int | None = None
    seconds: float | None = None
    count: int = 1
    run: int | None = None


class Way(msgspec.Struct, frozen=True, gc=False):
    """The way to an endpoint over the last interval: round trip in seconds, segments sent, and sent again."""

    rtt: float | None
    segments: int
    retransmits: int


class Vitals(msgspec.Struct, frozen=True, kw_only=True):
    """How this node itself was in the last reading; shares 0 to 1, None where it isn't measured.

    ``cpu_pressure`` is of some tasks, the other two of all at once. ``retransmits`` is the median over all
    endpoints, pool or not, of the share of segments that were sent again.
    """

    steal: float | None = None
    cpu_pressure: float | None = None
    memory_pressure: float | None = None
    io_pressure: float | None = None
    lost_events: int | None = None
    ports_exhausted: int | None = None
    retransmits: float | None = None


class State(IntEnum):
    """An endpoint's circuit; the value is that of the metric."""

    CLOSED = 0
    OPEN = 1
    HALF_OPEN = 2

    @property
    def word(self) -> str:
        """Its name for people."""
        return self.name.lower()


class Action(StrEnum):
    """What follows."""

    EJECT = "eject"
    UNEJECT = "uneject"
    HALF_OPEN = "half_open"
    OVERFLOW = "overflow"  # an outlier that stays, because too many would be out
    LOG_ONLY = "log_only"  # an outlier that stays, because its detection isn't enforced
    FREEZE = "freeze"
    UNFREEZE = "unfreeze"
    PANIC = "panic"  # too few are healthy: all are used
    CALM = "calm"


class Reason(StrEnum):
    """Why: a detection, by Envoy's name for it, or how an ejection ended."""

    CONSECUTIVE_5XX = "consecutive_5xx"
    CONSECUTIVE_GATEWAY_FAILURE = "consecutive_gateway_failure"
    CONSECUTIVE_LOCAL_ORIGIN_FAILURE = "consecutive_local_origin_failure"
    SUCCESS_RATE = "success_rate"
    SUCCESS_RATE_LOCAL_ORIGIN = "success_rate_local_origin"
    FAILURE_PERCENTAGE = "failure_percentage"
    FAILURE_PERCENTAGE_LOCAL_ORIGIN = "failure_percentage_local_origin"
    SLOW_RESPONSE = "slow_response"
    RTT = "rtt"
    RETRANSMITS = "retransmits"
    PROBE_FAILED = "probe_failed"
    MANUAL = "manual"
    FORCED_OPEN = "forced_open"
    ELAPSED = "elapsed"
    PROBED = "probed"
    RESET = "reset"
    REMOVED = "removed"
    OFF = "off"
    MIN_HEALTHY = "min_healthy"
    FROZEN = "frozen"
    HEALTHY_PANIC_THRESHOLD = "healthy_panic_threshold"


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """One transition with its evidence.

    ``pool`` and ``endpoint`` are empty where it concerns all of them. ``until`` is when an ejection is over at the
    earliest, None where it has no end of its own. ``ejections`` is the multiplier of the base ejection time.
    ``enforced`` is False where nothing is to be done about it. ``evidence`` are the numbers by what they are.
    """

    t: float
    pool: str
    endpoint: str
    action: Action
    reason: str
    until: float | None = None
    ejections: int = 0
    enforced: bool = True
    evidence: dict[str, Number] = {}


class Detections(msgspec.Struct, frozen=True, kw_only=True):
    """How often one detection fired since the endpoint is known: ``action`` is eject, log_only or overflow."""

    reason: str
    action: str
    enforced: bool
    count: int


class EndpointRow(msgspec.Struct, frozen=True, kw_only=True):
    """One endpoint of a pool.

    ``ejections`` is the multiplier, ``ejected_total`` how often it was ejected. Success rates, in percent, are
    those of the last interval, None below the least volume. ``permits`` are trial connections that are left.
    ``is_encrypted``: it speaks no HTTP/1 that can be read, so status counts for nothing.
    ``refused`` are connects that failfast refused, ``heard`` answers that a proxy told of, as they can't be read.
    """

    endpoint: str
    state: State
    reason: str
    since: float | None
    until: float | None
    ejections: int
    ejected_total: int
    consecutive_5xx: int
    consecutive_gateway_failure: int
    consecutive_local_origin_failure: int
    success_rate: float | None
    local_origin_success_rate: float | None
    permits: int
    detections: tuple[Detections, ...]
    is_encrypted: bool = False
    refused: int = 0
    heard: int = 0


class Circuit(msgspec.Struct, frozen=True, kw_only=True):
    """One endpoint as its metrics have it: the two counts are by (reason, whether it was done)."""

    pool: str
    endpoint: str
    state: int
    ejections: dict[tuple[str, str], int]
    overflow: dict[tuple[str, str], int]
    refused: int
    heard: int


class PoolRow(msgspec.Struct, frozen=True, kw_only=True):
    """One pool. ``active`` endpoints are out; ``uncharged`` failures came while this node was frozen.

    ``drivers`` is what became of that in proxies and in the kernel.
    """

    pool: str
    mode: str
    active: int
    panic: bool
    frozen: tuple[str, ...]
    overflow: int
    uncharged: int
    success_rate_average: float | None
    success_rate_threshold: float | None
    endpoints: tuple[EndpointRow, ...]
    drivers: tuple[DriverRow, ...] = ()

    @property
    def frozen_by(self) -> dict[str, int]:
        """1 for each reason why nobody is ejected now."""
        return dict.fromkeys(self.frozen, 1)


def circuits(pools: Iterable[PoolRow]) -> tuple[Circuit, ...]:
    """Return all endpoints of all pools."""
    return tuple(
        Circuit(
            pool=pool.pool,
            endpoint=row.endpoint,
            state=int(row.state),
            ejections=_counted(row, Action.EJECT, Action.LOG_ONLY),
            overflow=_counted(row, Action.OVERFLOW),
            refused=row.refused,
            heard=row.heard,
        )
        for pool in pools
        for row in pool.endpoints
    )


def _counted(row: EndpointRow, *actions: Action) -> dict[tuple[str, str], int]:
    found: dict[tuple[str, str], int] = {}
    for counted in row.detections:
        if counted.action in actions:
            key = counted.reason, "true" if counted.enforced else "false"
            found[key] = found.get(key, 0) + counted.count
    return found
