# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections import Counter as Counters

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.identity.services import OTHER, Service
from tidegate.model.fields import Role
from tidegate.model.record import Record
from tidegate.signals.tcp_fields import COUNTERS, HISTOGRAMS, Counter
from tidegate.totals import RowKey, Totals

pytestmark = pytest.mark.unit


def record(
    cgroup: int | None, endpoint: str, *, connects: int = 1, established: int = 0, closed: int = 0
) -> Record:
    counters = [0] * COUNTERS
    counters[Counter.CONNECTS] = connects
    counters[Counter.ESTABLISHED] = established
    counters[Counter.CLOSED] = closed
    return Record(
        cgroup,
        Role.CLIENT,
        endpoint,
        tuple(counters),
        ({established: 1} if established else {}, *({} for _ in HISTOGRAMS[1:])),
    )


def name(cgroup: int) -> Service:
    return Service(f"s{cgroup}")


def key(service: str, endpoint: str) -> RowKey:
    return RowKey(Service(service), Role.CLIENT, endpoint)


records = st.lists(
    st.builds(
        record,
        st.one_of(st.none(), st.integers(0, 30)),
        st.integers(0, 30).map(lambda n: f"10.0.0.{n}:80"),
        connects=st.integers(0, 5),
        established=st.integers(0, 3),
        closed=st.integers(0, 3),
    ),
    max_size=60,
)


@given(st.lists(records, max_size=8), st.integers(1, 40), st.integers(1, 10))
def test_sum_over_rows_is_all_that_was_counted_and_rows_are_bounded(
    ticks: list[list[Record]], max_rows: int, max_endpoints: int
) -> None:
    totals = Totals(max_rows, max_endpoints, idle=1.0)
    expected = [0] * COUNTERS
    samples = 0
    for tick, added in enumerate(ticks):
        totals.make_room(now=tick * 2.0)
        totals.add(added, name, now=tick * 2.0)
        for r in added:
            expected = [a + b for a, b in zip(expected, r.counters, strict=True)]
            samples += sum(r.histograms[0].values())
    rows = totals.sample()
    assert [sum(row.counters[i] for row in rows.values()) for i in range(COUNTERS)] == expected
    assert sum(sum(row.histograms[0].values()) for row in rows.values()) == samples
    assert len([k for k in rows if k.service != OTHER]) <= max_rows


def test_endpoints_past_the_limit_go_to_the_services_own_other() -> None:
    totals = Totals(100, 2, idle=900)
    totals.add([record(1, f"10.0.0.{n}:80") for n in range(5)], name, now=0)
    rows = totals.sample()
    assert {k.endpoint for k in rows} == {"10.0.0.0:80", "10.0.0.1:80", "other"}
    assert rows[key("s1", "other")].counters[Counter.CONNECTS] == 3


def test_services_past_the_limit_go_to_other() -> None:
    totals = Totals(3, 100, idle=900)
    totals.add([record(n, "10.0.0.1:80") for n in range(5)], name, now=0)
    assert totals.sample()[key("other", "other")].counters[Counter.CONNECTS] == 2


def test_what_the_kernel_could_not_attribute_is_other() -> None:
    totals = Totals(3, 100, idle=900)
    totals.add([record(None, "other", connects=7)], name, now=0)
    assert totals.sample()[key("other", "other")].counters[Counter.CONNECTS] == 7


def test_idle_rows_make_room_and_rows_with_open_connections_stay() -> None:
    totals = Totals(2, 100, idle=10)
    totals.add([record(1, "a:1"), record(2, "a:1", established=1)], name, now=0)
    assert totals.make_room(now=11)
    totals.add([record(3, "a:1")], name, now=11)
    rows = totals.sample()
    assert set(rows) == {key("s2", "a:1"), key("s3", "a:1"), key("other", "other")}
    assert totals.folded == 1


def test_a_sample_does_not_change_afterwards() -> None:
    totals = Totals(10, 10, idle=10)
    totals.add([record(1, "a:1")], name, now=0)
    before = totals.sample()
    totals.add([record(1, "a:1")], name, now=1)
    assert before[key("s1", "a:1")].counters[Counter.CONNECTS] == 1
    assert totals.sample()[key("s1", "a:1")].counters[Counter.CONNECTS] == 2


@given(st.lists(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=20), max_size=6), st.integers(1, 4))
def test_what_is_open_is_right_after_a_recount_also_where_rows_are_too_many(
    ticks: list[list[tuple[int, bool]]], max_rows: int
) -> None:
    totals = Totals(max_rows, 2, idle=1.0)
    alive: Counters[int] = Counters()
    for tick, events in enumerate(ticks):
        totals.make_room(now=tick * 2.0)
        for number, opens in events:
            if not opens and not alive[number]:
                continue
            alive[number] += 1 if opens else -1
            totals.add([record(number, "a:1", established=opens, closed=not opens)], name, now=tick * 2.0)
    connects = sum(row.counters[Counter.CONNECTS] for row in totals.sample().values())
    totals.recount({key(f"s{number}", "a:1"): n for number, n in alive.items() if n})
    rows = totals.sample()
    for number in range(6):
        if (own := key(f"s{number}", "a:1")) in rows:
            assert rows[own].open == alive[number]
    assert all(row.open >= 0 for row in rows.values())
    assert sum(row.open for row in rows.values()) == alive.total()
    assert sum(row.counters[Counter.CONNECTS] for row in rows.values()) == connects
