# SPDX-License-Identifier: Apache-2.0
"""Two samples and a duration become the immutable Snapshot; the only place where rates are computed."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import Any

from tidegate.model import histogram
from tidegate.model.fields import Role
from tidegate.model.snapshot import Distribution, EndpointRow, Node, ServiceRow, Snapshot
from tidegate.signals.tcp_fields import (
    CLOSERS,
    COUNTERS,
    DURATION,
    FAILURES,
    HANDSHAKE,
    HISTOGRAMS,
    RESETS,
    RETRANSMITS,
    RTT,
    Counter,
    Histogram,
)
from tidegate.totals import Row, RowKey, Sample

_EMPTY = Row((0,) * COUNTERS, ({},) * len(HISTOGRAMS))
_SYNACK = Counter.RETRANSMITS + RETRANSMITS.index("synack")


def snapshot(before: Sample, now: Sample, *, time: float, interval: float, node: Node) -> Snapshot:
    """Build the snapshot of the ``interval`` seconds between two samples, which ended at ``time`` (Unix)."""
    keys = sorted(now, key=lambda key: (key.service, key.role, key.endpoint))
    return Snapshot(
        time=time,
        interval=interval,
        node=node,
        endpoints=tuple(endpoint_row(key, Change(before.get(key, _EMPTY), now[key], interval)) for key in keys),
        services=tuple(
            service_row(list(group), before, now, interval)
            for _, group in groupby(keys, key=lambda key: key.service)
        ),
    )


class Change:
    """A row at the begin and at the end of an interval, in seconds."""

    def __init__(self, before: Row, now: Row, interval: float) -> None:
        self.before, self.now, self.interval = before, now, interval

    def count(self, counter: int) -> int:
        """Return a total."""
        return self.now.counters[counter]

    def counts(self, first: int, names: tuple[str, ...]) -> dict[str, int]:
        """Return the totals that stand one after the other, by their names."""
        return dict(zip(names, self.now.counters[first : first + len(names)], strict=True))

    def added(self, first: int, length: int = 1) -> int:
        """Return what was added to some counters that stand one after the other."""
        now, before = self.now.counters, self.before.counters
        return sum(now[first : first + length]) - sum(before[first : first + length])

    def rate(self, first: int, length: int = 1) -> float:
        """Return the same per second."""
        return self.added(first, length) / self.interval if self.interval > 0 else 0.0

    def distribution(self, of: Histogram) -> Distribution:
        """Return a histogram in seconds."""
        place = HISTOGRAMS.index(of)
        slots, earlier = self.now.histograms[place], self.before.histograms[place]
        latest = {} if slots is earlier else histogram.subtract(slots, earlier)
        buckets = histogram.cumulative(slots, of.shift, of.bounds)
        p50, p90, p99 = (
            None if value is None else value / 1e9
            for value in histogram.percentiles(latest, of.shift, (0.5, 0.9, 0.99))
        )
        return Distribution(
            p50=p50, p90=p90, p99=p99, count=buckets[-1], sum=self.count(of.total) / 1e9, buckets=buckets
        )


def traffic(change: Change) -> dict[str, Any]:
    """Return the fields of :class:`tidegate.model.snapshot.Traffic`."""
    sent = change.added(Counter.SEGMENTS_SENT)
    again = change.added(Counter.RETRANSMITS, len(RETRANSMITS)) - change.added(_SYNACK)
    return {
        "open": change.now.open,
        "closes": change.counts(Counter.CLOSES, CLOSERS),
        "duration": change.distribution(DURATION),
        "rtt": change.distribution(RTT),
        "sent_bytes": change.count(Counter.SENT_BYTES),
        "sent_rate": change.rate(Counter.SENT_BYTES),
        "received_bytes": change.count(Counter.RECEIVED_BYTES),
        "received_rate": change.rate(Counter.RECEIVED_BYTES),
        "segments_sent": change.count(Counter.SEGMENTS_SENT),
        "segments_received": change.count(Counter.SEGMENTS_RECEIVED),
        "retransmits": change.counts(Counter.RETRANSMITS, RETRANSMITS),
        "retransmit_rate": change.rate(Counter.RETRANSMITS, len(RETRANSMITS)),
        "retransmit_ratio": again / sent if sent else None,
        **{f"resets_{name}": n for name, n in change.counts(Counter.RESETS, RESETS).items()},
    }


def endpoint_row(key: RowKey, change: Change) -> EndpointRow:
    """Build one row; what its role doesn't have is None."""
    client = key.role is Role.CLIENT
    return EndpointRow(
        service=key.service.name,
        container=key.service.container,
        role=key.role,
        endpoint=key.endpoint,
        name="",
        connects=change.count(Counter.CONNECTS) if client else None,
        connect_rate=change.rate(Counter.CONNECTS) if client else None,
        established=change.count(Counter.ESTABLISHED),
        accepts=None if client else change.count(Counter.ESTABLISHED),
        accept_rate=None if client else change.rate(Counter.ESTABLISHED),
        failures=change.counts(Counter.FAILURES, FAILURES) if client else None,
        failure_rate=change.rate(Counter.FAILURES, len(FAILURES)) if client else None,
        handshake=change.distribution(HANDSHAKE) if client else None,
        **traffic(change),
    )


def service_row(keys: list[RowKey], before: Sample, now: Sample, interval: float) -> ServiceRow:
    """Sum the rows of one service, clients and servers apart."""
    calling, called = (
        Change(_sum(before, of_role), _sum(now, of_role), interval)
        for of_role in ([key for key in keys if key.role is role] for role in (Role.CLIENT, Role.SERVER))
    )
    both = Change(_added(calling.before, called.before), _added(calling.now, called.now), interval)
    return ServiceRow(
        service=keys[0].service.name,
        container=keys[0].service.container,
        endpoints=len(keys),
        connects=calling.count(Counter.CONNECTS),
        connect_rate=calling.rate(Counter.CONNECTS),
        accepts=called.count(Counter.ESTABLISHED),
        accept_rate=called.rate(Counter.ESTABLISHED),
        failures=calling.counts(Counter.FAILURES, FAILURES),
        failure_rate=calling.rate(Counter.FAILURES, len(FAILURES)),
        handshake=calling.distribution(HANDSHAKE),
        **traffic(both),
    )


def _sum(sample: Sample, keys: Iterable[RowKey]) -> Row:
    total = _EMPTY
    for key in keys:
        if key in sample:
            total = _added(total, sample[key])
    return total


def _added(a: Row, b: Row) -> Row:
    # The row itself where there is nothing to add: a histogram that is the same object is known not to have grown.
    if a is _EMPTY:
        return b
    return a if b is _EMPTY else a.plus(b.counters, b.histograms)
