# SPDX-License-Identifier: Apache-2.0
"""Connections of two samples become the rows of services and endpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import groupby
from typing import Any, NamedTuple

from tidegate.identity.services import Service
from tidegate.model import histogram
from tidegate.model.fields import Role
from tidegate.model.snapshot import EndpointRow, Node, ServiceRow, Snapshot
from tidegate.rates.change import RowChange
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
)
from tidegate.totals import Row, RowKey, Sample

_EMPTY = Row((0,) * COUNTERS, ({},) * len(HISTOGRAMS))
_ROLES = (Role.CLIENT, Role.SERVER)
_SYNACK = Counter.RETRANSMITS + RETRANSMITS.index("synack")


def _nowhere(_: str) -> str:
    return ""


def _order(key: RowKey) -> tuple[Service, Role, str]:
    return key.service, key.role, key.endpoint


class Summed(NamedTuple):
    """The sums of a service's rows, clients and servers apart; its row if nothing had changed in the interval."""

    keys: list[RowKey]
    calling: Row
    called: Row
    idle: ServiceRow | None


class Rates:
    """Builds snapshots of one sample after the other; what has not changed for two of them is not built again.

    ``location_of`` names the place of an endpoint, or returns an empty string.
    """

    def __init__(self, location_of: Callable[[str], str] = _nowhere) -> None:
        self._location_of = location_of
        self._names: Mapping[str, str] = {}
        self._before: Sample = {}
        self._order: list[RowKey] = []
        self._idle: dict[RowKey, EndpointRow] = {}
        self._sums: dict[Service, Summed] = {}

    def begin_at(self, before: Sample) -> None:
        """Take this for the sample before: the same totals, but in other rows, which is no traffic."""
        self._before, self._idle, self._sums = before, {}, {}
        self._order = sorted(before, key=_order)

    def name(self, names: Mapping[str, str]) -> None:
        """Give endpoints these names from now on."""
        if names != self._names:
            self._names, self._idle = names, {}

    def snapshot(self, now: Sample, *, time: float, interval: float, node: Node) -> Snapshot:
        """Build the snapshot of the ``interval`` seconds since the sample before, which end at ``time`` (Unix).

        Before the first sample everything was 0.
        """
        if now.keys() != self._before.keys():
            self._order = sorted(now, key=_order)
        groups = [list(keys) for _, keys in groupby(self._order, key=lambda key: key.service)]
        changed = {key for key in self._order if self._before.get(key) is not now[key]}
        endpoints = tuple(self._endpoint(key, now[key], interval, key in changed) for key in self._order)
        sums = {keys[0].service: self._service(keys, now, interval, changed) for keys in groups}
        self._before, self._sums = now, {service: summed for service, (summed, _) in sums.items()}
        self._idle = {k: row for k, row in zip(self._order, endpoints, strict=True) if k not in changed}
        services = tuple(row for _, row in sums.values())
        return Snapshot(time=time, interval=interval, node=node, endpoints=endpoints, services=services)

    def _endpoint(self, key: RowKey, now: Row, interval: float, is_changed: bool) -> EndpointRow:
        if not is_changed and key in self._idle:
            return self._idle[key]
        change = Change(self._before.get(key, _EMPTY), now, interval)
        if key.role is Role.SERVER:
            return endpoint_row(key, change)
        return endpoint_row(key, change, self._location_of(key.endpoint), self._names.get(key.endpoint, ""))

    def _service(
        self, keys: list[RowKey], now: Sample, interval: float, changed: set[RowKey]
    ) -> tuple[Summed, ServiceRow]:
        before = self._sums.get(keys[0].service)
        # Of the same rows: one that was folded into another service since would make a step backwards.
        if before is None or before.keys != keys:
            before = Summed(keys, *_sums(self._before, keys), None)
        is_idle = changed.isdisjoint(keys)
        if is_idle and before.idle is not None:
            return before, before.idle
        calling, called = (before.calling, before.called) if is_idle else _sums(now, keys)
        row = service_row(keys, Change(before.calling, calling, interval), Change(before.called, called, interval))
        return Summed(keys, calling, called, row if is_idle else None), row


class Change(RowChange):
    """Connections at the begin and at the end of an interval."""

    declared = HISTOGRAMS


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
        "exchanges": change.count(Counter.EXCHANGES),
        "exchange_rate": change.rate(Counter.EXCHANGES),
        "retransmits": change.counts(Counter.RETRANSMITS, RETRANSMITS),
        "retransmit_rate": change.rate(Counter.RETRANSMITS, len(RETRANSMITS)),
        "retransmit_ratio": again / sent if sent else None,
        **{f"resets_{name}": n for name, n in change.counts(Counter.RESETS, RESETS).items()},
    }


def endpoint_row(key: RowKey, change: Change, location: str = "", name: str = "") -> EndpointRow:
    """Build one row; what its role doesn't have is None."""
    client = key.role is Role.CLIENT
    return EndpointRow(
        service=key.service.name,
        container=key.service.container,
        role=key.role,
        endpoint=key.endpoint,
        name=name,
        connects=change.count(Counter.CONNECTS) if client else None,
        connect_rate=change.rate(Counter.CONNECTS) if client else None,
        established=change.count(Counter.ESTABLISHED),
        accepts=None if client else change.count(Counter.ESTABLISHED),
        accept_rate=None if client else change.rate(Counter.ESTABLISHED),
        failures=change.counts(Counter.FAILURES, FAILURES) if client else None,
        failure_rate=change.rate(Counter.FAILURES, len(FAILURES)) if client else None,
        handshake=change.distribution(HANDSHAKE) if client else None,
        rtt_min=change.now.rtt_min_us / 1e6 if change.now.rtt_min_us else None,
        location=location,
        **traffic(change),
    )


def service_row(keys: list[RowKey], calling: Change, called: Change) -> ServiceRow:
    """Build the sum of a service's rows from what it does as client (calling) and as server (called)."""
    both = Change(_sum([calling.before, called.before]), _sum([calling.now, called.now]), calling.interval)
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


def _sums(sample: Sample, keys: list[RowKey]) -> tuple[Row, Row]:
    """Return the sum of the clients among some rows and that of the servers."""
    calling, called = (
        _sum([sample[key] for key in keys if key.role is role and key in sample]) for role in _ROLES
    )
    return calling, called


def _sum(rows: list[Row]) -> Row:
    # The row itself where there is nothing to add: a histogram that is the same object is known not to have grown.
    rows = [row for row in rows if row is not _EMPTY]
    if len(rows) < 2:
        return rows[0] if rows else _EMPTY
    counters = tuple(map(sum, zip(*(row.counters for row in rows), strict=True)))
    return Row(counters, tuple(map(histogram.total, zip(*(row.histograms for row in rows), strict=True))))
