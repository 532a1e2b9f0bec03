# SPDX-License-Identifier: Apache-2.0
"""Ports divided among services, visits that are some seconds old, and flows that end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.identity.services import UNKNOWN, Service
from tidegate.model.fields import Role
from tidegate.model.ports import Method, PortsRow
from tidegate.model.record import Record
from tidegate.ports.flows import Flow, Level, Ticks, Traffic
from tidegate.ports.table import PortsTable, divided
from tidegate.signals.ports import Settings, Upstream, Visit, Waiting
from tidegate.signals.tcp_fields import CLOSERS, COUNTERS, FAILURES, HISTOGRAMS, RESETS, Counter

pytestmark = pytest.mark.unit
NETNS = 4026531840
SHOP, CART = Service("shop.service"), Service("cart.service")
NAMES = {1: SHOP, 2: CART}
UPSTREAM = Upstream(NETNS, "10.0.0.5", "10.0.0.6:5000")
SETTINGS = {NETNS: Settings(low=40000, high=40399, reserved=0, tw_reuse=2, reuse_delay=1.0, somaxconn=4096)}


def record(cgroup: int = 1, connects: int = 0, local: int = 0, resets: int = 0, exhausted: int = 0) -> Record:
    counters = [0] * COUNTERS
    counters[Counter.CONNECTS] = connects
    counters[Counter.CLOSES + CLOSERS.index("local")] = local
    counters[Counter.RESETS + RESETS.index("sent")] = resets
    counters[Counter.FAILURES + FAILURES.index("ports_exhausted")] = exhausted
    return Record(cgroup, Role.CLIENT, UPSTREAM.endpoint, tuple(counters), ({},) * len(HISTOGRAMS), 0, NETNS)


def visit(waiting: int, timestamped: int = 0, reusable: int = 0, bound: int = 0) -> Visit:
    return Visit({UPSTREAM: Waiting(waiting, timestamped, reusable)}, waiting, (), bound)


class Table:
    """A table that is asked once a second."""

    def __init__(self, settings: dict[int, Settings] | None = None, max_rows: int = 100) -> None:
        self.table = PortsTable(max_rows)
        self.now = 100.0
        self.settings = SETTINGS if settings is None else settings

    def tick(
        self,
        *records: Record,
        held: dict[Service, int] | None = None,
        visited: Visit | None = None,
        time_wait: int | None = None,
    ) -> dict[str, PortsRow]:
        self.now += 1.0
        self.table.add(records, lambda cgroup: NAMES[cgroup], self.now)
        if visited is not None:
            self.table.visited(NETNS, visited, self.now)
        waits = {} if time_wait is None else {NETNS: time_wait}
        sockets = {(service, UPSTREAM): n for service, n in (held or {}).items()}
        return {row.service: row for row in self.table.rows(sockets, self.settings, waits, self.now, 1.0)}


def test_what_waits_is_divided_by_who_closed() -> None:
    rows = Table().tick(
        record(1, connects=40, local=30), record(2, connects=10, local=10), held={SHOP: 10}, visited=visit(40)
    )
    assert {name: (row.used, row.time_wait, row.shared) for name, row in rows.items()} == {
        SHOP.name: (40, 30, 50),
        CART.name: (10, 10, 50),
    }
    assert {row.method for row in rows.values()} == {Method.SOCKETS}


def test_what_waits_from_before_is_of_who_is_connected_or_of_nobody_known() -> None:
    assert Table().tick(held={SHOP: 1}, visited=visit(7))[SHOP.name].time_wait == 7
    assert Table().tick(visited=visit(7))[UNKNOWN.name].used == 7


def test_between_visits_closes_go_on_counting() -> None:
    table = Table()
    table.tick(record(local=10), visited=visit(10))
    assert table.tick(record(local=5))[SHOP.name].time_wait == 15
    assert table.tick(record(local=5, resets=3))[SHOP.name].time_wait == 17
    # What was found is right, whatever was thought.
    assert table.tick(visited=visit(12))[SHOP.name].time_wait == 12


def test_a_visit_may_be_long_ago() -> None:
    table = Table()
    table.tick(record(local=10), visited=visit(10))
    used = [table.tick(record(local=20))[SHOP.name].time_wait for _ in range(50)]
    assert used == [30 + 20 * n for n in range(50)]


def test_after_a_minute_what_waited_is_over() -> None:
    table = Table()
    table.tick(record(local=10), visited=visit(10))
    used = [rows[SHOP.name].used if (rows := table.tick()) else 0 for _ in range(62)]
    assert used[:58] == [10] * 58
    assert used[-1] == 0


def test_what_was_closed_and_is_held_still_counts_once() -> None:
    table = PortsTable(100)
    table.add([record(connects=9, local=5)], lambda cgroup: NAMES[cgroup], 1.0, {UPSTREAM.place: 3})
    (row,) = table.rows({(SHOP, UPSTREAM): 7}, SETTINGS, {}, 1.0, 1.0)
    assert (row.used, row.time_wait) == (9, 2)
    table.add([], lambda cgroup: NAMES[cgroup], 2.0, {})
    (row,) = table.rows({(SHOP, UPSTREAM): 4}, SETTINGS, {}, 2.0, 1.0)
    assert (row.used, row.time_wait) == (9, 5)


def test_without_visits_it_is_the_closes_of_a_minute_and_never_more_than_the_kernel_counts() -> None:
    table = Table()
    row = table.tick(record(local=10))[SHOP.name]
    assert (row.time_wait, row.method, row.source) == (10, Method.CLOSES, "")
    assert table.tick(record(local=10), time_wait=12)[SHOP.name].time_wait == 12


def test_a_reset_leaves_no_port_behind() -> None:
    rows = Table().tick(record(connects=9, local=9, resets=9))
    assert rows == {}


def test_the_forecast_goes_by_what_is_left_behind() -> None:
    table = Table()
    table.tick(record(connects=7, local=7), visited=visit(7))
    for n in range(1, 5):
        row = table.tick(record(connects=20, local=20), visited=visit(7 + 20 * n))[SHOP.name]
    assert row.connect_rate == pytest.approx(20)
    assert row.will_exhaust
    assert row.time_to_exhaustion == pytest.approx((400 - 87) / 20, rel=0.01)
    assert row.seconds_to_exhaustion == row.time_to_exhaustion


def test_a_burst_foretells_nothing_and_traffic_that_goes_on_does() -> None:
    table = Table({NETNS: SETTINGS[NETNS]._replace(low=32768, high=60999)})
    row = table.tick(record(connects=900, local=900), visited=visit(900))[SHOP.name]
    assert (row.will_exhaust, row.time_to_exhaustion) == (None, None)
    for _ in range(6):
        row = table.tick(visited=visit(900))[SHOP.name]
    assert row.will_exhaust is False
    for n in range(6):
        row = table.tick(record(connects=900, local=900), visited=visit(1800 + 900 * n))[SHOP.name]
    assert row.will_exhaust is True


def test_where_ports_are_out_already_it_is_now() -> None:
    table = Table()
    row = table.tick(record(connects=20, exhausted=20), held={SHOP: 3}, visited=visit(390))[SHOP.name]
    assert (row.will_exhaust, row.time_to_exhaustion, row.exhausted) == (True, 0.0, 20)


def test_growth_counts_where_nothing_is_closed() -> None:
    table = Table()
    for n in range(8):
        row = table.tick(record(connects=10), held={SHOP: 10 * n + 10}, visited=visit(0))[SHOP.name]
    assert row.time_to_exhaustion == pytest.approx((400 - 80) / 10, rel=0.01)
    for _ in range(40):
        row = table.tick(held={SHOP: 80}, visited=visit(0))[SHOP.name]
    assert (row.will_exhaust, row.seconds_to_exhaustion) == (False, float("inf"))


@pytest.mark.parametrize(
    ("tw_reuse", "timestamped", "will"), [(1, 380, False), (1, 0, True), (2, 380, True), (0, 380, True)]
)
def test_reuse_takes_timestamps_and_more_than_the_loopback(tw_reuse: int, timestamped: int, will: bool) -> None:
    table = Table({NETNS: SETTINGS[NETNS]._replace(tw_reuse=tw_reuse)})
    for _ in range(4):
        row = table.tick(record(connects=60, local=60), visited=visit(380, timestamped, timestamped * 5 // 6))[
            SHOP.name
        ]
    assert row.will_exhaust is will


def test_what_is_bound_can_not_be_had_and_without_settings_nothing_is_known() -> None:
    assert Table().tick(held={SHOP: 1}, visited=visit(0, bound=3))[SHOP.name].limit == 397
    row = Table({}).tick(held={SHOP: 1})[SHOP.name]
    assert (row.limit, row.will_exhaust, row.time_to_exhaustion, row.seconds_to_exhaustion) == (
        None,
        None,
        None,
        None,
    )


def test_rows_without_place_are_left_out_and_counted() -> None:
    table = Table(max_rows=1)
    assert set(table.tick(held={SHOP: 5, CART: 9})) == {CART.name}
    assert table.table.left_out == 1


def test_of_many_upstreams_the_fullest_are_shown() -> None:
    table = PortsTable(3)
    held = {(SHOP, UPSTREAM._replace(endpoint=f"10.0.0.6:{port}")): port for port in range(1, 11)}
    table.add((), lambda cgroup: NAMES[cgroup], 1.0)
    rows = table.rows(held, SETTINGS, {}, 1.0, 1.0)
    assert [row.used for row in rows] == [10, 9, 8]
    assert table.left_out == 7


@given(st.integers(0, 10_000), st.dictionaries(st.sampled_from([SHOP, CART, UNKNOWN]), st.integers(0, 1000)))
def test_parts_add_up(count: int, weights: dict[Service, int]) -> None:
    parts = divided(count, weights)
    assert sum(parts.values()) == (count if sum(weights.values()) else 0)
    assert all(abs(parts[s] - count * weights[s] / sum(weights.values())) <= 1 for s in parts)


def test_a_rate_leaves_out_the_interval_in_which_traffic_begins() -> None:
    flow, ticks = Flow(0.0), Ticks()
    rates = []
    for second, connects in enumerate([3, 10, 10, 0, 0, 0, 0, 0, 0, 7, 7]):
        ticks.add(float(second))
        if connects:
            flow.add(ticks.last(1.0), Traffic(connects))
        rates.append(flow.connect_rate(ticks.last(1.0)))
    assert rates == [3, 10, 10, 20 / 3, 5, 4, 2, 0, 0, 7, 7]


@given(st.lists(st.tuples(st.floats(0.2, 3), st.integers(0, 50)), min_size=1, max_size=60))
def test_an_interval_without_traffic_need_not_be_told(steps: list[tuple[float, int]]) -> None:
    told, untold, ticks = Flow(0.0), Flow(0.0), Ticks()
    now = 0.0
    for delay, connects in steps:
        now += delay
        ticks.add(now)
        tick = ticks.last(delay)
        traffic = Traffic(connects, closes=tuple(connects if name == "local" else 0 for name in CLOSERS))
        told.add(tick, traffic)
        if connects:
            untold.add(tick, traffic)
        for of in (Flow.connect_rate, Flow.close_rate, Flow.seen):
            assert of(told, tick) == of(untold, tick)
        assert told.waiting(now) == untold.waiting(now)


@given(st.lists(st.tuples(st.floats(0.01, 20), st.integers(0, 50)), min_size=1, max_size=60))
def test_ends_in_the_next_minute_are_what_was_left_in_the_last(steps: list[tuple[float, int]]) -> None:
    flow, ticks, now = Flow(0.0), Ticks(), 0.0
    left = []
    for delay, closes in steps:
        now += delay
        ticks.add(now)
        flow.add(ticks.last(delay), Traffic(closes=tuple(closes if name == "local" else 0 for name in CLOSERS)))
        left.append((int(now), closes))
    of_the_last_minute = sum(closes for second, closes in left if second > int(now) - 60)
    assert sum(flow.expiries(now)) == flow.waiting(now) == of_the_last_minute


@pytest.mark.parametrize(
    ("values", "growth"),
    [([0, 10, 20, 30], 10), ([0, 3, 6, 9], 0), ([0, 30, 30, 30], 0), ([0, 30], 0), ([30, 20, 10, 0], 0)],
)
def test_growth_is_in_both_halves(values: list[int], growth: float) -> None:
    level = Level()
    for second, value in enumerate(values):
        level.add(float(second), value)
    assert level.growth(2.0, 10) == growth
