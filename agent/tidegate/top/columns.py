# SPDX-License-Identifier: Apache-2.0
"""The columns of each table: title, width and how a row's value is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from tidegate.model.snapshot import Distribution, EndpointRow, ServiceRow

Row = ServiceRow | EndpointRow
MISSING = "-"


class Column(NamedTuple):
    """One column; ``value`` gives what is sorted by, ``text`` how it is written; ``width`` is the least."""

    name: str
    title: str
    width: int
    value: Callable[[Any], Any]
    text: Callable[[Any], str]
    left: bool = False


def rate(value: float | None) -> str:
    """Write events per second."""
    if value is None:
        return MISSING
    return f"{value:.1f}" if value < 1e5 else f"{value:.0f}"


def count(value: int | None) -> str:
    """Write a whole number."""
    return MISSING if value is None else str(value)


def duration(seconds: float | None) -> str:
    """Write a duration with three digits: 7.70us, 153ms, 1.02s."""
    if seconds is None:
        return MISSING
    for unit, scale in (("us", 1e6), ("ms", 1e3)):
        value = seconds * scale
        if value < 999.5:
            digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
            return f"{value:.{digits}f}{unit}"
    return f"{seconds:.2f}s" if seconds < 99.995 else f"{seconds:.0f}s"


def reasons(failures: dict[str, int] | None) -> str:
    """Write failures by reason, the most frequent first; only those that happened."""
    found = sorted(((n, reason) for reason, n in (failures or {}).items() if n), reverse=True)
    return ", ".join(f"{reason} {n}" for n, reason in found)


def _p(quantile: str) -> Callable[[Row], float | None]:
    def value(row: Row) -> float | None:
        distribution: Distribution | None = row.handshake
        return None if distribution is None else getattr(distribution, quantile)

    return value


_HANDSHAKE = (
    Column("handshake_p50", "HS-P50", 7, _p("p50"), duration),
    Column("handshake_p99", "HS-P99", 7, _p("p99"), duration),
)
_FAILURES = Column(
    "failures",
    "FAILURES (total)",
    0,
    lambda row: sum((row.failures or {}).values()),
    lambda _: "",
    left=True,
)

SERVICES: tuple[Column, ...] = (
    Column("service", "SERVICE", 16, lambda row: row.service, str, left=True),
    Column("container", "CONTAINER", 9, lambda row: row.container, str, left=True),
    Column("connect_rate", "CONN/S", 7, lambda row: row.connect_rate, rate),
    Column("failure_rate", "FAIL/S", 7, lambda row: row.failure_rate, rate),
    Column("accept_rate", "ACPT/S", 7, lambda row: row.accept_rate, rate),
    Column("open", "OPEN", 5, lambda row: row.open, count),
    *_HANDSHAKE,
    Column("connects", "CONNECTS", 10, lambda row: row.connects, count),
    Column("accepts", "ACCEPTS", 10, lambda row: row.accepts, count),
    Column("endpoints", "ENDPOINTS", 9, lambda row: row.endpoints, count),
    _FAILURES,
)
ENDPOINTS: tuple[Column, ...] = (
    Column("service", "SERVICE", 16, lambda row: row.service, str, left=True),
    Column("container", "CONTAINER", 9, lambda row: row.container, str, left=True),
    Column("role", "ROLE", 6, lambda row: row.role.value, str, left=True),
    Column("endpoint", "ENDPOINT", 16, lambda row: row.endpoint, str, left=True),
    Column("connect_rate", "CONN/S", 7, lambda row: row.connect_rate, rate),
    Column("failure_rate", "FAIL/S", 7, lambda row: row.failure_rate, rate),
    Column("accept_rate", "ACPT/S", 7, lambda row: row.accept_rate, rate),
    Column("open", "OPEN", 5, lambda row: row.open, count),
    *_HANDSHAKE,
    Column("connects", "CONNECTS", 10, lambda row: row.connects, count),
    Column("accepts", "ACCEPTS", 10, lambda row: row.accepts, count),
    Column("established", "ESTABLISHED", 11, lambda row: row.established, count),
    _FAILURES,
)
TABLES = {"services": SERVICES, "endpoints": ENDPOINTS}
DEFAULTS = {
    "services": (
        "service",
        "connect_rate",
        "failure_rate",
        "accept_rate",
        "open",
        "handshake_p50",
        "handshake_p99",
        "failures",
    ),
    "endpoints": (
        "service",
        "role",
        "endpoint",
        "connect_rate",
        "failure_rate",
        "accept_rate",
        "open",
        "handshake_p50",
        "handshake_p99",
        "failures",
    ),
}
