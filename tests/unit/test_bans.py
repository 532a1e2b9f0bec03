# SPDX-License-Identifier: Apache-2.0
"""Which sources are banned, for how long; against a plain count of the same events."""

from __future__ import annotations

import random
from collections import defaultdict, deque
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.model.feed import Address, Event, Kind
from tidegate.ratelimit.bans import Ban, Bans, Expired, Network, Parameters, Threshold, prefix_of

pytestmark = pytest.mark.unit

THRESHOLDS = {
    Kind.LIMITED: Threshold(3, 10.0),
    Kind.TOO_MANY: Threshold(2, 5.0),
    Kind.UNAUTHORIZED: Threshold(4, 60.0),
}
SOURCE = ip_address("198.51.100.7")
PREFIX = IPv4Network("198.51.100.7/32")


def bans(**changed: float) -> Bans:
    parameters = Parameters(THRESHOLDS, **{"duration": 60.0, "longest": 200.0, **changed})  # type: ignore[arg-type]
    return Bans(parameters, lambda _: False)


def observed(engine: Bans, *times: float, kind: Kind = Kind.LIMITED, address: Address = SOURCE) -> list[Ban]:
    found = [engine.observe(Event(time, address, kind)) for time in times]
    return [one for one in found if one is not None]


def test_the_count_within_the_time_bans() -> None:
    assert observed(bans(), 0.0, 5.0, 10.0) == [Ban(PREFIX, 70.0, "3 limited within 10 s", Kind.LIMITED, 3, 60.0)]
    assert observed(bans(), 0.0, 5.0, 10.1, 15.1) == []


def test_each_kind_has_a_threshold_of_its_own() -> None:
    engine = bans()
    assert observed(engine, 0.0, 0.0) == []
    assert observed(engine, 0.0, 0.0, 0.0, kind=Kind.UNAUTHORIZED) == []
    assert [ban.kind for ban in observed(engine, 1.0, 1.0, kind=Kind.TOO_MANY)] == [Kind.TOO_MANY]
    only = Bans(Parameters({Kind.LIMITED: Threshold(1, 1.0)}), lambda _: False)
    assert observed(only, 0.0, kind=Kind.TOO_MANY) == []


def test_addresses_of_a_64_are_one_source() -> None:
    engine = bans()
    for last in (1, 2):
        assert observed(engine, 0.0, address=ip_address(f"2001:db8::{last}")) == []
    assert observed(engine, 0.0, address=ip_address("2001:db8:0:1::3")) == []
    (ban,) = observed(engine, 0.0, address=ip_address("2001:db8::ffff:0:0:3"))
    assert ban.prefix == IPv6Network("2001:db8::/64")


def test_a_further_ban_is_longer_up_to_the_longest_until_it_is_forgotten() -> None:
    engine, now, durations = bans(memory=1000.0), 0.0, []
    for pause in (0.0, 0.0, 999.0, 1000.0, 1001.0):
        now += pause
        (ban,) = observed(engine, now, now, now)
        durations.append(ban.duration)
        assert ban.until == now + ban.duration
        assert engine.expire(ban.until) == [Expired(PREFIX)]
        now = ban.until
    assert durations == [60.0, 120.0, 200.0, 200.0, 60.0]


def test_what_comes_while_banned_counts_for_nothing() -> None:
    engine = bans()
    (ban,) = observed(engine, 0.0, 0.0, 0.0)
    assert observed(engine, *[ban.until - 1] * 5) == []
    assert engine.expire(ban.until - 1) == []
    assert engine.expire(ban.until) == [Expired(PREFIX)]
    assert engine.expire(ban.until) == []
    assert observed(engine, ban.until, ban.until) == []
    assert engine.counts()["while_banned"] == 5


def test_no_more_bans_at_a_time_than_the_cap() -> None:
    engine = bans(at_most=2)
    made = [observed(engine, 0.0, 0.0, 0.0, address=IPv4Address(f"192.0.2.{n}")) for n in range(5)]
    assert [len(one) for one in made] == [1, 1, 0, 0, 0]
    assert (len(engine), engine.counts()["refused_at_most"]) == (2, 3)
    engine.expire(60.0)
    assert len(observed(engine, 60.0, 60.0, 60.0, address=IPv4Address("192.0.2.4"))) == 1


def test_a_lifted_ban_is_as_if_it_had_never_been() -> None:
    engine = bans()
    observed(engine, 0.0, 0.0, 0.0)
    assert engine.lift(PREFIX)
    assert not engine.lift(PREFIX)
    (ban,) = observed(engine, 1.0, 1.0, 1.0)
    assert ban.duration == 60.0
    assert engine.expire(60.0) == []  # the first one's end
    assert engine.expire(61.0) == [Expired(PREFIX)]


def test_a_ban_of_an_earlier_run_ends_in_its_time() -> None:
    engine = bans()
    engine.restore(PREFIX, 5.0)
    assert observed(engine, 1.0, 1.0, 1.0) == []
    assert engine.expire(5.0) == [Expired(PREFIX)]


def test_many_bans_made_and_lifted_leave_nothing() -> None:
    engine = bans()
    for number in range(5000):
        address = IPv4Address(number)
        assert len(observed(engine, 0.0, 0.0, 0.0, address=address)) == 1
        assert engine.lift(prefix_of(address))
    assert len(engine) == 0
    assert len(engine._ends) <= 65


def test_a_flood_of_addresses_is_remembered_within_bounds() -> None:
    engine = bans(max_sources=100, max_events=150)
    random_ = random.Random(1)
    for number in range(20_000):
        engine.observe(Event(number / 1e6, IPv6Address(random_.getrandbits(128)), Kind.UNAUTHORIZED))
        sources, events = engine.tracked
        assert sources <= 100
        assert events <= 150
    assert engine.counts()["sources_forgotten"] == 20_000 - 100
    # One that goes on is not forgotten for those that come once.
    one = [
        engine.observe(Event(1.0, address, Kind.LIMITED))
        for _ in range(3)
        for address in (SOURCE, *(IPv4Address(random_.getrandbits(32)) for _ in range(40)))
    ]
    assert [ban.prefix for ban in one if ban] == [PREFIX]


def test_the_count_of_events_is_bounded_too() -> None:
    engine = bans(max_sources=100, max_events=30)
    for number in range(100):
        observed(engine, 0.0, 0.0, kind=Kind.UNAUTHORIZED, address=IPv4Address(number))
    assert engine.tracked == (15, 30)
    assert engine.counts()["sources_forgotten"] == 85


ADDRESSES: list[Address] = [
    *(ip_address(f"192.0.2.{n}") for n in range(4)),
    *(ip_address(f"2001:db8:0:{n}::{m}") for n in range(2) for m in range(1, 3)),
]
ALLOWED = [ip_network("192.0.2.2/31"), ip_network("2001:db8:0:1::2/128")]
arrivals = st.lists(
    st.tuples(st.sampled_from([0.0, 0.5, 2.0, 7.0, 40.0]), st.sampled_from(ADDRESSES), st.sampled_from(Kind)),
    max_size=120,
)


def is_allowed(address: Address) -> bool:
    return any(address in network for network in ALLOWED)


@given(arrivals, st.sampled_from([1, 2, 100]), st.sampled_from([1.0, 2.0, 3.5]))
def test_decisions_are_those_of_a_plain_count(
    steps: list[tuple[float, Address, Kind]], at_most: int, escalation: float
) -> None:
    engine = Bans(
        Parameters(THRESHOLDS, duration=4.0, escalation=escalation, longest=30.0, at_most=at_most, memory=20.0),
        is_allowed,
    )
    seen: dict[tuple[Network, Kind], deque[float]] = defaultdict(deque)
    in_force: dict[Network, float] = {}
    last: dict[Network, tuple[float, float]] = {}
    now = 0.0
    for step, address, kind in steps:
        now += step
        ended = {prefix for prefix, until in in_force.items() if until <= now}
        found = engine.expire(now)
        assert {one.prefix for one in found} == ended
        assert len(found) == len(ended)
        in_force = {prefix: until for prefix, until in in_force.items() if prefix not in ended}
        prefix = ip_network((address, 32 if address.version == 4 else 64), strict=False)
        expected = None
        if not is_allowed(address) and prefix not in in_force:
            times = seen[prefix, kind]
            times.append(now)
            threshold = THRESHOLDS[kind]
            if sum(now - threshold.within <= time for time in times) >= threshold.count:
                for other in Kind:
                    seen[prefix, other].clear()
                if len(in_force) < at_most:
                    duration, until = last.get(prefix, (0.0, -100.0))
                    again = now - until <= 20.0
                    expected = min(duration * escalation, 30.0) if again else 4.0
                    in_force[prefix] = now + expected
                    last[prefix] = (expected, now + expected)
        ban = engine.observe(Event(now, address, kind))
        assert (ban and (ban.prefix, ban.duration, ban.until, ban.kind)) == (
            expected and (prefix, expected, now + expected, kind)
        )
        assert len(engine) == len(in_force) <= at_most
        assert not any(prefix.version == 4 and is_allowed(prefix.network_address) for prefix in in_force)
