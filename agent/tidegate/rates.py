# SPDX-License-Identifier: Apache-2.0
"""Two samples and a duration become the immutable Snapshot; the only place where rates are computed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby

from tidegate.model import histogram
from tidegate.model.fields import Role
from tidegate.model.snapshot import Distribution, EndpointRow, Node, ServiceRow, Snapshot
from tidegate.signals.tcp import COUNTERS, FAILURES, HANDSHAKE_BOUNDS, HANDSHAKE_SHIFT, Counter
from tidegate.totals import Row, RowKey, Sample

_EMPTY = Row((0,) * COUNTERS, ({},))


def snapshot(before: Sample, now: Sample, *, time: float, interval: float, node: Node) -> Snapshot:
    """Build the snapshot of the ``interval`` seconds between two samples, which ended at ``time`` (Unix)."""
    keys = sorted(now, key=lambda key: (key.service, key.role, key.endpoint))
    return Snapshot(
        time=time,
        interval=interval,
        node=node,
        endpoints=tuple(endpoint_row(key, before.get(key, _EMPTY), now[key], interval) for key in keys),
        services=tuple(
            service_row(list(group), before, now, interval)
            for _, group in groupby(keys, key=lambda key: key.service)
        ),
    )


def endpoint_row(key: RowKey, before: Row, now: Row, interval: float) -> EndpointRow:
    """Build one row; what its role doesn't have is None."""
    client = key.role is Role.CLIENT
    return EndpointRow(
        service=key.service.name,
        container=key.service.container,
        role=key.role,
        endpoint=key.endpoint,
        name="",
        connects=now.counters[Counter.CONNECTS] if client else None,
        connect_rate=_rate(before, now, Counter.CONNECTS, interval) if client else None,
        established=now.counters[Counter.ESTABLISHED],
        accepts=None if client else now.counters[Counter.ESTABLISHED],
        accept_rate=None if client else _rate(before, now, Counter.ESTABLISHED, interval),
        failures=_failures(now) if client else None,
        failure_rate=_failure_rate(before, now, interval) if client else None,
        open=now.open,
        handshake=_distribution(before, now) if client else None,
    )


def service_row(keys: list[RowKey], before: Sample, now: Sample, interval: float) -> ServiceRow:
    """Sum the rows of one service, clients and servers apart."""
    clients = [key for key in keys if key.role is Role.CLIENT]
    servers = [key for key in keys if key.role is Role.SERVER]
    calling, called = _sum(now, clients), _sum(now, servers)
    called_before = _sum(before, servers)
    calling_before = _sum(before, clients)
    return ServiceRow(
        service=keys[0].service.name,
        container=keys[0].service.container,
        endpoints=len(keys),
        connects=calling.counters[Counter.CONNECTS],
        connect_rate=_rate(calling_before, calling, Counter.CONNECTS, interval),
        accepts=called.counters[Counter.ESTABLISHED],
        accept_rate=_rate(called_before, called, Counter.ESTABLISHED, interval),
        failures=_failures(calling),
        failure_rate=_failure_rate(calling_before, calling, interval),
        open=calling.open + called.open,
        handshake=_distribution(calling_before, calling),
    )


def _sum(sample: Sample, keys: Iterable[RowKey]) -> Row:
    rows = [sample[key] for key in keys if key in sample]
    if not rows:
        return _EMPTY
    total = rows[0]
    for row in rows[1:]:
        total = total.plus(*row)
    return total


def _rate(before: Row, now: Row, counter: Counter, interval: float) -> float:
    return (now.counters[counter] - before.counters[counter]) / interval if interval > 0 else 0.0


def _failures(row: Row) -> dict[str, int]:
    counts = row.counters[Counter.FAILURES : Counter.FAILURES + len(FAILURES)]
    return dict(zip(FAILURES, counts, strict=True))


def _failure_rate(before: Row, now: Row, interval: float) -> float:
    added = sum(_failures(now).values()) - sum(_failures(before).values())
    return added / interval if interval > 0 else 0.0


def _distribution(before: Row, now: Row) -> Distribution:
    slots = now.histograms[0]
    latest = {} if slots is before.histograms[0] else histogram.subtract(slots, before.histograms[0])
    buckets = histogram.cumulative(slots, HANDSHAKE_SHIFT, HANDSHAKE_BOUNDS)
    p50, p90, p99 = (_seconds(latest, quantile) for quantile in (0.5, 0.9, 0.99))
    return Distribution(
        p50=p50,
        p90=p90,
        p99=p99,
        count=buckets[-1],
        sum=now.counters[Counter.HANDSHAKE_NS] / 1e9,
        buckets=buckets,
    )


def _seconds(slots: Mapping[int, int], quantile: float) -> float | None:
    value = histogram.percentile(slots, HANDSHAKE_SHIFT, quantile)
    return None if value is None else value / 1e9
