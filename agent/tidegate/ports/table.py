# SPDX-License-Identifier: Apache-2.0
"""The rows of ports: who holds how many towards each upstream; pure."""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Callable, Iterable, Mapping
from heapq import nlargest
from itertools import chain
from math import ceil
from types import MappingProxyType
from typing import NamedTuple

from tidegate.identity.services import UNKNOWN, Service
from tidegate.model.fields import Role
from tidegate.model.ports import Method, PortsRow
from tidegate.model.record import Record
from tidegate.ports.exhaustion import TIME_WAIT, Holding, time_to_exhaustion
from tidegate.ports.flows import Flow, Level, Tick, Ticks, Traffic
from tidegate.signals.ports import Settings, Upstream, Visit, Waiting
from tidegate.signals.tcp_fields import CLOSERS, FAILURES, RESETS, Counter

_RESET_SENT = Counter.RESETS + RESETS.index("sent")
_EXHAUSTED = Counter.FAILURES + FAILURES.index("ports_exhausted")
_CLOSES = tuple(Counter.CLOSES + n for n in range(len(CLOSERS)))
_NO_CLOSES = (0,) * len(CLOSERS)
_COUNTERS = (Counter.CONNECTS, _RESET_SENT, _EXHAUSTED, *_CLOSES)
#: What has had no traffic for so many seconds is forgotten: its last port is free again.
_KEPT = 90.0
#: That is looked at after so many seconds again.
_FORGETS = 10.0
#: Connects that failed so many seconds ago still mean now.
_STILL_NOW = 2.0
#: Seconds for which open connections must have become more for that to be growth; where ports are few, and else.
_GROWTH_NEAR, _GROWTH = 3.0, 5.0
#: So many more of them are none, or a hundredth of the ports.
_NOISE = 10

#: The share of the ports above which each is to be known, and not only what closes tell.
_PRESSING = 0.05
#: Where fewer are held, traffic has to be seen for so many seconds before its rate is believed.
_OBSERVED = 4.0

ServiceOf = Callable[[int], Service]
#: A namespace and an upstream in it.
Place = tuple[int, str]
NOTHING: Mapping[Place, int] = MappingProxyType({})


class Pool(NamedTuple):
    """What is known of one upstream in this interval: sockets by service, and in TIME_WAIT."""

    held: Mapping[Service, int]
    waiting: Waiting
    method: Method


class _Visited(NamedTuple):
    """A visit with its time, and what should have waited then to go by the closes."""

    at: float
    visit: Visit
    then: Mapping[Place, int]


class PortsTable:
    """The ports of all namespaces; at most ``max_rows`` rows, those that hold the most ports."""

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        self._flows: dict[Place, dict[Service, Flow]] = {}
        self._ticks = Ticks()
        self._forgot_at = 0.0
        self._open: dict[Upstream, Level] = {}
        self._visits: dict[int, _Visited] = {}
        self._closing: Mapping[Place, int] = NOTHING
        self.left_out = 0
        #: Namespaces in which more than a small share of the ports towards an upstream is held.
        self.pressing: set[int] = set()

    def add(
        self,
        records: Iterable[Record],
        service_of: ServiceOf,
        now: float,
        closing: Mapping[Place, int] = NOTHING,
    ) -> None:
        """Take what connections did in the interval that ends at ``now`` (monotonic seconds).

        ``closing`` are connections whose close is among that, and that hold their port still: until the other side
        has acknowledged it.
        """
        self._closing = closing
        self._ticks.add(now)
        tick = self._ticks.last(0.0)
        counts: dict[tuple[Place, Service], list[int]] = {}
        for record in records:
            if record.role is not Role.CLIENT or record.cgroup is None or not record.netns:
                continue
            key = (record.netns, record.endpoint), service_of(record.cgroup)
            counters = record.counters
            numbers = [counters[n] for n in _COUNTERS]
            before = counts.get(key)
            counts[key] = numbers if before is None else [a + b for a, b in zip(before, numbers, strict=True)]
        for (place, service), (connects, resets, exhausted, *closes) in counts.items():
            flows = self._flows.setdefault(place, {})
            if service not in flows:
                flows[service] = Flow(now)
            flows[service].add(tick, Traffic(connects, resets, exhausted, tuple(closes)))

    def visited(self, netns: int, visit: Visit, now: float) -> None:
        """Take what was found in a namespace at this moment."""
        then = {place: self._left_behind(place, now) for place in self._flows if place[0] == netns}
        self._visits[netns] = _Visited(now, visit, then)

    @property
    def namespaces(self) -> set[int]:
        """Namespaces in which connections were seen in the last minute."""
        return {netns for netns, _ in self._flows}

    def rows(
        self,
        held: Mapping[tuple[Service, Upstream], int],
        settings: Mapping[int, Settings],
        time_wait: Mapping[int, int],
        now: float,
        interval: float,
    ) -> tuple[PortsRow, ...]:
        """Return the rows of this moment, those that hold the most first.

        ``time_wait`` is how many sockets wait in a namespace that can't be entered, as far as that is known.
        """
        tick = self._ticks.last(interval)
        if now - self._forgot_at >= _FORGETS:
            self._forget(now)
        pools = self._pools(held, time_wait, now)
        self._open = {upstream: level for upstream, level in self._open.items() if upstream in pools}
        rows = [
            row
            for upstream, pool in self._fullest(pools)
            for row in self._rows_of(upstream, pool, settings.get(upstream.netns), tick)
        ]
        self.pressing = {row.netns for row in rows if row.limit is not None and row.shared > row.limit * _PRESSING}
        rows.sort(key=lambda row: (-row.used, row.netns, row.service, row.endpoint))
        self.left_out += max(len(rows) - self._max_rows, 0)
        return tuple(rows[: self._max_rows])

    def _fullest(self, pools: dict[Upstream, Pool]) -> Iterable[tuple[Upstream, Pool]]:
        """Return as many as there may be rows; those that are left out are not worth a forecast each."""
        if len(pools) <= self._max_rows:
            return pools.items()
        self.left_out += len(pools) - self._max_rows
        return nlargest(self._max_rows, pools.items(), key=lambda item: _held_of(item[1]))

    def _pools(
        self, held: Mapping[tuple[Service, Upstream], int], time_wait: Mapping[int, int], now: float
    ) -> dict[Upstream, Pool]:
        by_upstream: dict[Upstream, dict[Service, int]] = {}
        for (service, upstream), count in held.items():
            services = by_upstream.setdefault(upstream, {})
            services[service] = services.get(service, 0) + count
        for upstream in chain.from_iterable(visited.visit.waiting for visited in self._visits.values()):
            by_upstream.setdefault(upstream, {})
        sources = Counts(upstream.place for upstream in by_upstream)
        for netns, endpoint in self._flows.keys() - sources.keys():
            by_upstream[Upstream(netns, "", endpoint)] = {}
        pools = {
            upstream: Pool(services, *self._waiting(upstream, now, sources[upstream.place] or 1))
            for upstream, services in by_upstream.items()
        }
        return _no_more_than(pools, time_wait) if time_wait else pools

    def _waiting(self, upstream: Upstream, now: float, sources: int) -> tuple[Waiting, Method]:
        """Return what waits: as found now, or as found before and what was closed and has ended since."""
        if upstream.netns not in self._visits:
            closed = self._left_behind(upstream.place, now) // sources
            return Waiting(closed, closed, 0), Method.CLOSES
        at, visit, then = self._visits[upstream.netns]
        found = visit.waiting.get(upstream, Waiting(0, 0, 0))
        if at == now:
            return found, Method.SOCKETS
        change = (self._left_behind(upstream.place, now) - then.get(upstream.place, 0)) // sources
        change = max(change, -found.sockets)
        timestamped = max(min(found.timestamped + change, found.sockets + change), 0)
        return Waiting(found.sockets + change, timestamped, min(found.reusable, timestamped)), Method.SOCKETS

    def _rows_of(
        self, upstream: Upstream, pool: Pool, settings: Settings | None, tick: Tick
    ) -> Iterable[PortsRow]:
        flows = self._flows_to(upstream)
        waits = _divided_by_closes(pool, flows, tick.now)
        if pool.waiting.sockets and not waits:
            waits = {UNKNOWN: pool.waiting.sockets}
        reusable = divided(pool.waiting.reusable, waits)
        shared = _held_of(pool)
        limit = self._limit(upstream.netns, settings)
        will_exhaust, left = self._forecast(upstream, pool, settings, limit, tick)
        for service in pool.held.keys() | waits.keys() | flows.keys():
            flow = flows.get(service)
            used = pool.held.get(service, 0) + waits.get(service, 0)
            if not used and (flow is None or tick.now - flow.exhausted_at > _KEPT):
                continue
            yield PortsRow(
                netns=upstream.netns,
                service=service.name,
                container=service.container,
                source=upstream.source,
                endpoint=upstream.endpoint,
                name="",
                used=used,
                shared=shared,
                time_wait=waits.get(service, 0),
                reusable=reusable.get(service, 0),
                limit=limit,
                exhausted=flow.exhausted if flow else 0,
                connect_rate=flow.connect_rate(tick) if flow else 0.0,
                closes=dict(zip(CLOSERS, flow.closes if flow else _NO_CLOSES, strict=True)),
                will_exhaust=will_exhaust,
                time_to_exhaustion=left,
                method=pool.method,
            )

    def _forecast(
        self,
        upstream: Upstream,
        pool: Pool,
        settings: Settings | None,
        limit: int | None,
        tick: Tick,
    ) -> tuple[bool | None, float | None]:
        """Say whether and when; nothing of a burst, whose rate is that of a moment and whose ports are few."""
        flows, now = self._flows_to(upstream).values(), tick.now
        level = self._open.setdefault(upstream, Level())
        held = sum(pool.held.values())
        level.add(now, held)
        if settings is None or limit is None:
            return None, None
        # Rates that exhaustion limits say nothing of when it comes.
        if any(now - flow.exhausted_at <= max(_STILL_NOW, tick.interval) for flow in flows):
            return True, 0.0
        waiting = pool.waiting
        if held + waiting.sockets <= limit * _PRESSING and all(flow.seen(tick) < _OBSERVED for flow in flows):
            return None, None
        is_near = held + waiting.sockets > limit // 4
        works = _reuse_works(upstream, settings, waiting)
        closes = sum(flow.close_rate(tick) for flow in flows)
        blocked = waiting.sockets
        if works:
            blocked = min(waiting.sockets - waiting.reusable, ceil(closes * settings.reuse_delay))
        left = time_to_exhaustion(
            Holding(
                open=held,
                waiting=blocked,
                limit=limit,
                closes=closes,
                growth=level.growth(_GROWTH_NEAR if is_near else _GROWTH, max(limit // 100, _NOISE)),
                hold=settings.reuse_delay if works else float(TIME_WAIT),
            ),
            lambda: [float(blocked)] if works else _expiries(flows, blocked, now),
        )
        return left is not None, left

    def _limit(self, netns: int, settings: Settings | None) -> int | None:
        if settings is None:
            return None
        bound = self._visits[netns].visit.bound if netns in self._visits else 0
        return max(settings.high - settings.low + 1 - settings.reserved - bound, 0)

    def _left_behind(self, place: Place, now: float) -> int:
        """Return how many connections were closed in the last minute and have left their port behind."""
        flows = self._flows.get(place, {})
        return max(sum(flow.waiting(now) for flow in flows.values()) - self._closing.get(place, 0), 0)

    def _flows_to(self, upstream: Upstream) -> dict[Service, Flow]:
        return self._flows.get(upstream.place, {})

    def _forget(self, now: float) -> None:
        """Drop what is idle, and visits of namespaces that were not entered again."""
        self._forgot_at = now
        for place, flows in list(self._flows.items()):
            kept = {service: flow for service, flow in flows.items() if now - flow.touched <= _KEPT}
            if kept:
                self._flows[place] = kept
            else:
                del self._flows[place]
        self._visits = {netns: visited for netns, visited in self._visits.items() if now - visited.at <= _KEPT}


def _held_of(pool: Pool) -> int:
    return sum(pool.held.values()) + pool.waiting.sockets


def _divided_by_closes(pool: Pool, flows: Mapping[Service, Flow], now: float) -> dict[Service, int]:
    """Say whose the sockets are that wait: of those who closed in the last minute, else of those connected."""
    waiting = pool.waiting.sockets
    if not waiting:
        return {}
    if len(flows) == 1 and pool.held.keys() <= flows.keys():
        return dict.fromkeys(flows, waiting)
    closed = {service: flow.waiting(now) for service, flow in flows.items()}
    return divided(waiting, closed) or divided(waiting, pool.held)


def divided(count: int, weights: Mapping[Service, int]) -> dict[Service, int]:
    """Divide a number by weights into whole parts that add up to it; nothing where there is no weight."""
    total = sum(weights.values())
    if not total:
        return {}
    if len(weights) == 1:
        return dict.fromkeys(weights, count)
    parts = {service: count * weight // total for service, weight in weights.items()}
    # What is left goes to those who were cut most.
    by_rest = sorted(weights, key=lambda service: (-(count * weights[service] % total), service))
    for service in by_rest[: count - sum(parts.values())]:
        parts[service] += 1
    return parts


def _no_more_than(pools: dict[Upstream, Pool], time_wait: Mapping[int, int]) -> dict[Upstream, Pool]:
    """Shorten guesses from closes where a namespace has fewer sockets in TIME_WAIT than they add up to."""
    guessed: Counts[int] = Counts()
    for upstream, pool in pools.items():
        if pool.method is Method.CLOSES:
            guessed[upstream.netns] += pool.waiting.sockets
    result = {}
    for upstream, pool in pools.items():
        most, sum_ = time_wait.get(upstream.netns), guessed[upstream.netns]
        if pool.method is Method.CLOSES and most is not None and sum_ > most:
            n = pool.waiting.sockets * most // sum_
            pool = pool._replace(waiting=Waiting(n, n, 0))  # noqa: PLW2901
        result[upstream] = pool
    return result


def _reuse_works(upstream: Upstream, settings: Settings, waiting: Waiting) -> bool:
    """Say whether connect() may take ports in TIME_WAIT: tcp_tw_reuse, with timestamps on both sides."""
    on_loopback = upstream.source.startswith("127.") or upstream.source == "::1"
    return (settings.tw_reuse == 1 or (settings.tw_reuse == 2 and on_loopback)) and (
        2 * waiting.timestamped >= waiting.sockets
    )


def _expiries(flows: Iterable[Flow], waiting: int, now: float) -> list[float]:
    """Return how many of those that wait will end in each second to come, so that they add up to ``waiting``.

    What no flow has left behind is from before, and spread evenly.
    """
    known = [sum(seconds) for seconds in zip(*(flow.expiries(now) for flow in flows), strict=True)] or [0] * 60
    total = sum(known)
    if total > waiting:
        return [n * waiting / total for n in known]
    return [n + (waiting - total) / len(known) for n in known]
