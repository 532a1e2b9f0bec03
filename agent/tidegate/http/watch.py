# SPDX-License-Identifier: Apache-2.0
"""The HTTP signal of this node: watched endpoints go in, rows with their responses come out."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from tidegate.errors import TidegateError
from tidegate.identity.services import Service
from tidegate.kernel.endpoints import Endpoint, Endpoints
from tidegate.kernel.maps import Map
from tidegate.kernel.objects import Program
from tidegate.model.fields import Role
from tidegate.model.histogram import slot_edges
from tidegate.model.snapshot import EndpointRow, MapHealth
from tidegate.rates.change import RowChange
from tidegate.signals.http import HttpSignal
from tidegate.signals.http_fields import CLASSES, COUNTERS, HISTOGRAMS, RESPONSE
from tidegate.signals.http_fields import Counter as Place
from tidegate.totals import Row

log = logging.getLogger("tidegate")

_EMPTY = Row((0,) * COUNTERS, ({},) * len(HISTOGRAMS))


class _Key(NamedTuple):
    service: Service
    endpoint: str


class HttpChange(RowChange):
    """Responses at the begin and at the end of an interval."""

    declared = HISTOGRAMS


class HttpWatch:
    """Responses since the start, by service and endpoint.

    The programs are loaded when there are endpoints to watch. Where the kernel refuses them, ``refused`` says why.
    """

    def __init__(self, shared: dict[str, Map], cgroup2: Path, max_rows: int) -> None:
        self._shared, self._cgroup2, self._max_rows = shared, cgroup2, max_rows
        self._signal: HttpSignal | None = None
        self.endpoints = Endpoints(shared)
        self.refused: str | None = None
        self._rows: dict[_Key, Row] = {}
        self._took: dict[str, Counter[int]] = {}
        self._before: Mapping[_Key, Row] = {}

    def watch(self, wanted: Mapping[Endpoint, float]) -> None:
        """Watch these endpoints, each with its response timeout in seconds (0: none), and no others."""
        is_new = self.endpoints.watch(wanted)
        if wanted and self._signal is None and self.refused is None:
            try:
                self._signal = HttpSignal.start(self._shared, self._cgroup2, self._max_rows)
            except TidegateError as error:
                self.refused = str(error)
                log.warning("pools: HTTP status and resets are not seen: %s", error)
        if self._signal is not None and is_new:
            for refused in self._signal.adopt():
                log.warning("pools: connections that are open in %s are not followed", refused)

    def find_silence(self) -> None:
        """Have it told of each request that has waited too long."""
        if self._signal is not None:
            self._signal.find_silence()

    def read(self, service_of: Callable[[int], Service], now: float) -> None:
        """Add what was counted since the last time; ``now`` is monotonic seconds.

        Where rows are more than ``max_rows``, those that were without a response for longest begin anew.
        """
        self._before = dict(self._rows)
        for record in self._signal.read(now) if self._signal else ():
            assert record.cgroup is not None
            key = _Key(service_of(record.cgroup), record.endpoint)
            # To the end: what is touched last is dropped last.
            self._rows[key] = self._rows.pop(key, _EMPTY).plus(Row(record.counters, record.histograms))
            self._took.setdefault(record.endpoint, Counter()).update(record.histograms[0])
        while len(self._rows) > self._max_rows:
            del self._rows[next(iter(self._rows))]

    def timed(self, thresholds: Mapping[str, float]) -> dict[str, tuple[int, int]]:
        """Return how many answers each endpoint gave since the last call, and how many took so long (in s).

        To within a slot of the histogram, an eighth of the time.
        """
        found = {}
        for endpoint, seconds in thresholds.items():
            took = self._took.get(endpoint, Counter())
            slow = sum(n for slot, n in took.items() if slot_edges(slot, RESPONSE.shift)[1] > seconds * 1e9)
            found[endpoint] = took.total(), slow
        self._took.clear()
        return found

    def rows(self, endpoints: Iterable[EndpointRow], interval: float) -> tuple[EndpointRow, ...]:
        """Return the rows with what the HTTP of their connections was, where that is known."""
        if not self._rows:
            return tuple(endpoints)
        return tuple(self._row(row, interval) if row.role is Role.CLIENT else row for row in endpoints)

    def _row(self, row: EndpointRow, interval: float) -> EndpointRow:
        key = _Key(Service(row.service, row.container), row.endpoint)
        now = self._rows.get(key)
        if now is None:
            return row
        change = HttpChange(self._before.get(key, _EMPTY), now, interval)
        responses = change.counts(Place.RESPONSES, CLASSES)
        final = sum(count for name, count in responses.items() if name != "1xx")
        connections = row.established
        return msgspec.structs.replace(
            row,
            responses=responses,
            response=change.distribution(RESPONSE),
            requests_per_connection=final / connections if connections else None,
        )

    @property
    def connections(self) -> dict[str, Map]:
        """The map of the connections that are followed, for others that look at them."""
        return {"http_sockets": self._signal.bpf.maps["http_sockets"]} if self._signal else {}

    @property
    def programs(self) -> list[Program]:
        """Its programs, where they are loaded."""
        return list(self._signal.programs) if self._signal else []

    def maps(self) -> dict[str, MapHealth]:
        """Return how full its maps are."""
        return self._signal.maps() if self._signal else {}

    def close(self) -> None:
        """Detach and unload."""
        self.endpoints.close()
        if self._signal is not None:
            self._signal.close()
