# SPDX-License-Identifier: Apache-2.0
"""Sums records into totals per service and endpoint: bounded, exact in their sum, never going back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from operator import add
from typing import NamedTuple

from tidegate.identity.services import OTHER, Service
from tidegate.model import histogram
from tidegate.model.fields import Role
from tidegate.model.record import Record
from tidegate.signals.tcp_fields import COUNTERS, HISTOGRAMS, Counter

OTHER_ENDPOINT = "other"


class RowKey(NamedTuple):
    """What a row is about."""

    service: Service
    role: Role
    endpoint: str


class Row(NamedTuple):
    """The totals of a row, in the order in which the signal declares them; immutable."""

    counters: tuple[int, ...]
    histograms: tuple[Mapping[int, int], ...]
    #: The shortest round trip of the last interval that had one, in us; 0 before the first.
    rtt_min_us: int = 0

    def plus(self, added: Row) -> Row:
        """Return the sum with a later row as a new one."""
        pairs = zip(self.histograms, added.histograms, strict=True)
        return Row(
            tuple(map(add, self.counters, added.counters)),
            tuple(histogram.add(a, b) if b else a for a, b in pairs),
            added.rtt_min_us or self.rtt_min_us,
        )

    @property
    def open(self) -> int:
        """Connections that are established, or were before the agent's start, and not closed."""
        counters = self.counters
        return counters[Counter.ESTABLISHED] + counters[Counter.ADOPTED] - counters[Counter.CLOSED]


Sample = Mapping[RowKey, Row]


class Totals:
    """All rows since the start.

    At most ``max_rows`` rows, at most ``max_endpoints`` for one role of a service; what finds no place is
    summed in the service's endpoint ``other`` or in the service ``other``. Where room is short, rows that
    have been without traffic and open connections for ``idle`` seconds are folded into those.
    """

    def __init__(self, max_rows: int, max_endpoints: int, idle: float) -> None:
        self.limit(max_rows, max_endpoints, idle)
        self._rows: dict[RowKey, Row] = {}
        self._endpoints: dict[tuple[Service, Role], int] = {}
        self._touched: dict[RowKey, float] = {}
        self.folded = 0
        #: Whether anything was ever put into another row than its own.
        self.is_short = False

    def limit(self, max_rows: int, max_endpoints: int, idle: float) -> None:
        """Set other bounds; rows that are there already stay."""
        self._max_rows, self._max_endpoints, self._idle = max_rows, max_endpoints, idle

    def make_room(self, now: float) -> bool:
        """Fold idle rows if room is short; tell whether any was. ``now`` is monotonic seconds."""
        before = self.folded
        if self._kept() >= self._max_rows * 9 // 10:
            self._fold_idle(now)
        return self.folded != before

    def add(self, records: Iterable[Record], service_of: Callable[[int], Service], now: float) -> None:
        """Add what was counted since the last time; ``now`` is monotonic seconds."""
        shortest: dict[RowKey, int] = {}
        for record in records:
            service = OTHER if record.cgroup is None else service_of(record.cgroup)
            key = self._place(RowKey(service, record.role, record.endpoint))
            # Several records of one row, as of several cgroups, are of the same interval.
            if record.rtt_min_us:
                shortest[key] = min(record.rtt_min_us, shortest.get(key, record.rtt_min_us))
            self._sum(key, Row(record.counters, record.histograms, shortest.get(key, 0)))
            self._touched[key] = now

    def recount(self, open_connections: Mapping[RowKey, int]) -> None:
        """Set what is open in each row.

        Once something found no place, an open may be counted in one row and its close in another. The difference
        goes to the counts that make up what is open, and to no other.
        """
        wanted: dict[RowKey, int] = {}
        for key, count in open_connections.items():
            place = key if key in self._rows else self._other(key)
            wanted[place] = wanted.get(place, 0) + count
        for key in self._rows.keys() | wanted.keys():
            row = self._rows.get(key)
            more = wanted.get(key, 0) - (row.open if row else 0)
            if more:
                counters = [0] * COUNTERS
                counters[Counter.ADOPTED if more > 0 else Counter.CLOSED] = abs(more)
                self._sum(key, Row(tuple(counters), ({},) * len(HISTOGRAMS)))

    def sample(self) -> Sample:
        """Return the totals of this moment; later additions don't change it."""
        return dict(self._rows)

    def _kept(self) -> int:
        """Rows that count against the limit: all but those of ``other``."""
        return len(self._rows) - sum(RowKey(OTHER, role, OTHER_ENDPOINT) in self._rows for role in Role)

    def _sum(self, key: RowKey, added: Row) -> None:
        row = self._rows.get(key)
        if row is None:
            self._rows[key] = added
            group = (key.service, key.role)
            self._endpoints[group] = self._endpoints.get(group, 0) + 1
        else:
            self._rows[key] = row.plus(added)

    def _place(self, key: RowKey) -> RowKey:
        if key in self._rows or key.service == OTHER:
            return key if key.service != OTHER else RowKey(OTHER, key.role, OTHER_ENDPOINT)
        place = key
        if self._endpoints.get((key.service, key.role), 0) >= self._max_endpoints:
            place = RowKey(key.service, key.role, OTHER_ENDPOINT)
        if place not in self._rows and self._kept() >= self._max_rows:
            place = self._other(key)
        self.is_short |= place != key
        return place

    def _other(self, key: RowKey) -> RowKey:
        """Return the row that stands for one that is not kept."""
        own_other = RowKey(key.service, key.role, OTHER_ENDPOINT)
        return own_other if own_other in self._rows else RowKey(OTHER, key.role, OTHER_ENDPOINT)

    def _fold_idle(self, now: float) -> None:
        for key, touched in list(self._touched.items()):
            row = self._rows[key]
            if now - touched < self._idle or row.open or key.endpoint == OTHER_ENDPOINT:
                continue
            del self._rows[key], self._touched[key]
            self._forget(key)
            target = self._other(key)
            self._sum(target, row)
            self._touched.setdefault(target, now)
            self.folded += 1
            self.is_short = True

    def _forget(self, key: RowKey) -> None:
        group = (key.service, key.role)
        self._endpoints[group] -= 1
        if not self._endpoints[group]:
            del self._endpoints[group]
