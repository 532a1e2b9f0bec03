# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.identity.services import Service
from tidegate.model.fields import Role
from tidegate.model.snapshot import Node, Snapshot
from tidegate.rates import Rates
from tidegate.signals.tcp_fields import COUNTERS, HISTOGRAMS, Counter
from tidegate.totals import Row, RowKey, Sample

pytestmark = pytest.mark.unit
NODE = Node(name="n", kernel="6.1", cpus=2, uptime=1.0)
SHOP = Service("shop.service")
CLIENT = RowKey(SHOP, Role.CLIENT, "10.0.0.6:5000")
SERVER = RowKey(SHOP, Role.SERVER, ":80")


def row(*, handshake: dict[int, int] | None = None, **counts: int) -> Row:
    counters = [0] * COUNTERS
    for name, n in counts.items():
        index = Counter.FAILURES + 1 if name == "timeout" else Counter[name.upper()]
        counters[index] = n
    return Row(tuple(counters), (handshake or {}, *({} for _ in HISTOGRAMS[1:])))


def between(before: Sample, now: Sample, interval: float = 2.0) -> Snapshot:
    rates = Rates()
    rates.snapshot(before, time=98.0, interval=interval, node=NODE)
    return rates.snapshot(now, time=100.0, interval=interval, node=NODE)


def test_rates_are_of_the_interval_and_counts_are_totals() -> None:
    before = {CLIENT: row(connects=10, established=8, closed=8)}
    now = {CLIENT: row(connects=16, established=11, closed=9, timeout=3)}
    (found,) = between(before, now).endpoints
    assert (found.connects, found.connect_rate) == (16, 3.0)
    assert (found.established, found.open) == (11, 2)
    assert found.failures is not None
    assert found.failures["timeout"] == 3
    assert found.failures["refused"] == 0
    assert found.failure_rate == 1.5
    assert (found.accepts, found.accept_rate) == (None, None)


def test_a_server_has_no_connects_failures_or_handshakes() -> None:
    (found,) = between({}, {SERVER: row(established=4, closed=1)}).endpoints
    assert (found.accepts, found.accept_rate, found.open) == (4, 2.0, 3)
    assert (found.connects, found.connect_rate, found.failures, found.handshake) == (None, None, None, None)


def test_percentiles_are_of_the_interval_and_buckets_since_the_start() -> None:
    old = row(established=100, handshake={8: 100})
    new = row(established=110, handshake={8: 100, 120: 10}, handshake_ns=5_000_000)
    (found,) = between({CLIENT: old}, {CLIENT: new}).endpoints
    assert found.handshake is not None
    assert found.handshake.count == 110
    assert found.handshake.sum == 0.005
    assert found.handshake.p50 == pytest.approx(2**17 * 1024e-9, rel=0.1)
    assert found.handshake.buckets[0] == 100
    assert found.handshake.buckets[-1] == 110
    assert len(found.handshake.buckets) == 12


def test_an_idle_row_has_rates_of_zero_and_no_percentiles() -> None:
    same = row(connects=5, established=5, handshake={8: 5})
    (found,) = between({CLIENT: same}, {CLIENT: same}).endpoints
    assert found.connect_rate == 0.0
    assert found.handshake is not None
    assert (found.handshake.p50, found.handshake.count) == (None, 5)


def test_services_sum_their_rows() -> None:
    other = RowKey(SHOP, Role.CLIENT, "10.0.0.7:5000")
    now = {
        CLIENT: row(connects=4, established=3, timeout=1, handshake={8: 3}),
        other: row(connects=2, established=2, closed=2, handshake={9: 2}),
        SERVER: row(established=7, closed=6),
        RowKey(Service("a"), Role.SERVER, ":1"): row(established=1),
    }
    first, shop = between({}, now).services
    assert first.service == "a"
    assert (shop.service, shop.endpoints, shop.connects, shop.accepts, shop.open) == ("shop.service", 3, 6, 7, 4)
    assert shop.failures["timeout"] == 1
    assert (shop.connect_rate, shop.accept_rate, shop.failure_rate) == (3.0, 3.5, 0.5)
    assert shop.handshake.count == 5


def test_sum_over_services_equals_sum_over_endpoints() -> None:
    now = {
        RowKey(Service(f"s{n % 3}"), Role.CLIENT, f"10.0.0.{n}:1"): row(connects=n, established=n, timeout=1)
        for n in range(20)
    }
    found = between({}, now)
    assert sum(s.connects for s in found.services) == sum(e.connects or 0 for e in found.endpoints) == 190
    assert sum(s.failures["timeout"] for s in found.services) == 20


KEYS = [
    RowKey(Service(service), role, endpoint)
    for service in ("a", "b")
    for role in Role
    for endpoint in ("10.0.0.6:80", "other")
]
#: For each sample, which rows are there, and what is added to each of them.
SAMPLES = st.lists(
    st.dictionaries(st.sampled_from(KEYS), st.integers(0, 3).map(lambda n: (n, n // 2)), max_size=len(KEYS)),
    max_size=6,
)


@given(SAMPLES)
def test_what_is_not_built_again_is_what_would_be_built(samples: list[dict[RowKey, tuple[int, int]]]) -> None:
    rates = Rates()
    before: Sample = {}
    for added in samples:
        now = {}
        for key, (established, closed) in added.items():
            row_before = before.get(key)
            if row_before is not None and not established:
                now[key] = row_before  # the same object, as the totals give it
                continue
            counts = (row_before or row()).counters
            now[key] = row(
                established=counts[Counter.ESTABLISHED] + established,
                closed=counts[Counter.CLOSED] + closed,
                handshake={5: counts[Counter.ESTABLISHED] + established},
            )
        assert rates.snapshot(now, time=100.0, interval=2.0, node=NODE) == between(before, now)
        before = now
