# SPDX-License-Identifier: Apache-2.0
"""The columns of each table: title, width and how a row's value is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from tidegate.model.histogram import Distribution
from tidegate.model.snapshot import EndpointRow, ServiceRow

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


def size(value: float | None) -> str:
    """Write bytes, or bytes per second, with three digits: 0, 980, 1.23K, 45.6M."""
    if value is None:
        return MISSING
    for unit in ("", "K", "M", "G"):
        if value < 999.5:
            digits = 0 if not unit or value >= 99.95 else 1 if value >= 9.995 else 2
            return f"{value:.{digits}f}{unit}"
        value /= 1024
    return f"{value:.2f}T"


def percent(value: float | None) -> str:
    """Write a share in percent."""
    return MISSING if value is None else f"{value:.2%}"


def reasons(counts: dict[str, int] | None) -> str:
    """Write counts by reason, the most frequent first; only those that happened."""
    found = sorted(((n, reason) for reason, n in (counts or {}).items() if n), reverse=True)
    return ", ".join(f"{reason} {n}" for n, reason in found)


def _of(name: str) -> Callable[[Row], Any]:
    return lambda row: getattr(row, name)


def _quantile(name: str, quantile: str) -> Callable[[Row], float | None]:
    def value(row: Row) -> float | None:
        distribution: Distribution | None = getattr(row, name)
        return None if distribution is None else getattr(distribution, quantile)

    return value


def _times(name: str, title: str) -> Iterator[Column]:
    for quantile in ("p50", "p90", "p99"):
        value = _quantile(name, quantile)
        yield Column(f"{name}_{quantile}", f"{title}-{quantile.upper()}", 7, value, duration)


def _reasons(name: str, title: str) -> Column:
    return Column(name, title, 0, _of(name), reasons, left=True)


_WHO = (
    Column("service", "SERVICE", 16, _of("service"), str, left=True),
    Column("container", "CONTAINER", 9, _of("container"), str, left=True),
)
_WHAT = (
    Column("connect_rate", "CONN/S", 7, _of("connect_rate"), rate),
    Column("failure_rate", "FAIL/S", 7, _of("failure_rate"), rate),
    Column("accept_rate", "ACPT/S", 7, _of("accept_rate"), rate),
    Column("open", "OPEN", 5, _of("open"), count),
    Column("sent_rate", "SENT/S", 6, _of("sent_rate"), size),
    Column("received_rate", "RECV/S", 6, _of("received_rate"), size),
    Column("retransmit_ratio", "RETRANS", 7, _of("retransmit_ratio"), percent),
    *_times("rtt", "RTT"),
    *_times("handshake", "HS"),
    *_times("duration", "LIFE"),
    Column("connects", "CONNECTS", 10, _of("connects"), count),
    Column("accepts", "ACCEPTS", 10, _of("accepts"), count),
    Column("sent_bytes", "SENT", 6, _of("sent_bytes"), size),
    Column("received_bytes", "RECEIVED", 8, _of("received_bytes"), size),
    Column("segments_sent", "SEGS-OUT", 10, _of("segments_sent"), count),
    Column("segments_received", "SEGS-IN", 10, _of("segments_received"), count),
    Column("resets_sent", "RST-OUT", 7, _of("resets_sent"), count),
    Column("resets_received", "RST-IN", 7, _of("resets_received"), count),
)
_WHY = (
    _reasons("closes", "CLOSED FIRST BY"),
    _reasons("retransmits", "RETRANSMITS (total)"),
    _reasons("failures", "FAILURES (total)"),
)
SERVICES: tuple[Column, ...] = (
    *_WHO,
    *_WHAT,
    Column("endpoints", "ENDPOINTS", 9, _of("endpoints"), count),
    *_WHY,
)
ENDPOINTS: tuple[Column, ...] = (
    *_WHO,
    Column("role", "ROLE", 6, lambda row: row.role.value, str, left=True),
    Column("endpoint", "ENDPOINT", 16, _of("endpoint"), str, left=True),
    *_WHAT,
    Column("established", "ESTABLISHED", 11, _of("established"), count),
    *_WHY,
)
TABLES = {"services": SERVICES, "endpoints": ENDPOINTS}
_DEFAULTS = (
    "connect_rate",
    "failure_rate",
    "accept_rate",
    "open",
    "sent_rate",
    "received_rate",
    "retransmit_ratio",
    "rtt_p50",
    "handshake_p99",
    "failures",
)
DEFAULTS = {
    "services": ("service", "container", *_DEFAULTS),
    "endpoints": ("service", "container", "role", "endpoint", *_DEFAULTS),
}
