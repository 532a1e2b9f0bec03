# SPDX-License-Identifier: Apache-2.0
"""nginx's log lines on its upstreams: what they tell, and what is none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.feeds.upstreams import LONGEST, Failed, Passed, Try, events_of, parse
from tidegate.model.breaker import Event, Kind

pytestmark = pytest.mark.unit

HEAD = b"<190>Nov 25 08:40:01 nginx: "
NOW = 100.0


def test_one_try() -> None:
    one = Try("10.0.0.6:5000", 200, 0.001, 0.25, None, 99.75)
    assert parse(HEAD + b"10.0.0.6:5000 200 0.001 0.250", NOW) == (one,)
    assert parse(HEAD.replace(b"nginx", b"gateway shop_1") + b"10.0.0.6:5000 200 0.001 0.250\n", NOW) == (one,)


@pytest.mark.parametrize(
    ("written", "endpoint"),
    [
        (b"[fd00::6]:5000", "[fd00::6]:5000"),
        (b"[FD00:0::6]:5000", "[fd00::6]:5000"),
        (b"[::ffff:10.0.0.6]:5000", "10.0.0.6:5000"),
        (b"unix:/run/inventory.sock", "unix:/run/inventory.sock"),
    ],
)
def test_the_endpoint_is_as_the_config_has_it(written: bytes, endpoint: str) -> None:
    found = parse(HEAD + written + b" 503 0.000 0.002", NOW)
    assert not isinstance(found, Passed)
    assert [(one.endpoint, one.status, one.failed) for one in found] == [(endpoint, 503, None)]


@pytest.mark.parametrize(
    ("line", "failed"),
    [
        (b"10.0.0.6:5000 502 - -", Failed.NOT_CONNECTED),
        (b"10.0.0.6:5000 504 - -", Failed.NOT_CONNECTED),
        (b"10.0.0.6:5000 502 0.001 -", Failed.BROKEN),
        (b"10.0.0.6:5000 504 0.001 -", Failed.TIMED_OUT),
        (b"10.0.0.6:5000 - 0.001 -", Failed.GIVEN_UP),
        (b"10.0.0.6:5000 - - -", Failed.GIVEN_UP),
        (b"10.0.0.6:5000 200 0.001 -", Failed.GIVEN_UP),  # the header was not whole yet
        (b"inventory 502 - -", Failed.NOT_ASKED),
        (b"unix:/run/inventory.sock 502 - -", Failed.NOT_CONNECTED),
    ],
)
def test_a_try_without_an_answer_says_why_and_charges_nobody(line: bytes, failed: Failed) -> None:
    found = parse(HEAD + line, NOW)
    assert not isinstance(found, Passed)
    assert [one.failed for one in found] == [failed]
    assert events_of(found[0], "inventory") == ()
    late = events_of(found[0], "inventory", timeouts=True)
    assert [event.kind for event in late] == ([Kind.HTTP_TIMEOUT] if failed is Failed.TIMED_OUT else [])


def test_a_status_of_the_endpoint_is_an_event_be_it_502() -> None:
    found = parse(HEAD + b"10.0.0.6:5000 502 0.001 0.250", NOW)
    assert not isinstance(found, Passed)
    assert events_of(found[0], "inventory") == (
        Event("inventory", "10.0.0.6:5000", Kind.HTTP, code=502, started=99.75, seconds=0.25),
    )


def test_tries_come_in_their_order_each_as_old_as_those_behind_it_took() -> None:
    line = b"10.0.0.6:5001, [fd00::6]:5000 : 10.0.0.7:80 502, 503 : 200 -, 0.001 : 0.000 -, 0.500 : 0.250"
    assert parse(HEAD + line, NOW) == (
        Try("10.0.0.6:5001", 502, None, None, Failed.NOT_CONNECTED, 99.25),
        Try("[fd00::6]:5000", 503, 0.001, 0.5, None, 99.25),
        Try("10.0.0.7:80", 200, 0.0, 0.25, None, 99.75),
    )


def test_a_redirect_that_came_to_no_try_is_none() -> None:
    """nginx writes the join, and nothing behind it; ahead of it where it could not even make a socket."""
    one = Try("10.0.0.6:5000", 503, 0.0, 0.0, None, NOW)
    assert parse(HEAD + b"10.0.0.6:5000 :  503 :  0.000 :  0.000 : ", NOW) == (one,)
    assert parse(HEAD + b" : 10.0.0.6:5000 - : 503 - : 0.000 - : 0.000", NOW) == (one,)
    assert parse(
        HEAD + b"10.0.0.6:5000 : , 10.0.0.6:5000 503 : -, 503 0.000 : -, 0.000 0.000 : -, 0.000", NOW
    ) == (
        one,
        one,
    )


@pytest.mark.parametrize(
    ("datagram", "reason"),
    [
        (HEAD + b"- - - -", Passed.NO_UPSTREAM),
        (HEAD + b" - - -", Passed.NO_UPSTREAM),
        (HEAD, Passed.MALFORMED),
        (b"", Passed.MALFORMED),
        (b"10.0.0.6:5000 200 0.001 0.250", Passed.MALFORMED),  # a file's line, without syslog's header
        (HEAD + b"10.0.0.6:5000 200 0.001", Passed.MALFORMED),
        (HEAD + b"10.0.0.6:5000 200 0.001 0.250 0.251", Passed.MALFORMED),
        (HEAD + b"10.0.0.6:5000 20 0.001 0.250", Passed.MALFORMED),
        (HEAD + b"10.0.0.6:5000 200 0.001 -1", Passed.MALFORMED),
        (HEAD + b"10.0.0.6:5000, 10.0.0.7:5000 200 0.001 0.250", Passed.MALFORMED),
        (HEAD + b"10.0.0.6:5000 502, 200 -, 0.001 -, 0.250", Passed.MALFORMED),
        (HEAD + b"10.0.0.6:5000, 10.0.0.7:5000 502 : 200 -, 0.001 -, 0.250", Passed.MALFORMED),
        (HEAD + b"10.0.0.6:5000 \xb2\xb2\xb2 0.001 0.250", Passed.MALFORMED),
        (HEAD + b"198.51.100.7 198.51.100.7 403", Passed.MALFORMED),  # of the other feed
        (HEAD + b", ".join([b"10.0.0.6:5000"] * LONGEST), Passed.MALFORMED),
    ],
)
def test_what_is_no_try(datagram: bytes, reason: Passed) -> None:
    assert parse(datagram, NOW) is reason


PEERS = ("10.0.0.6:5000", "[fd00::6]:5000", "unix:/run/a.sock", "inventory")
PARTS = st.tuples(
    st.sampled_from(PEERS),
    st.none() | st.integers(100, 599),
    st.none() | st.integers(0, 10**6),
    st.none() | st.integers(0, 10**6),
)


def seconds(milliseconds: int | None) -> str:
    return "-" if milliseconds is None else f"{milliseconds // 1000}.{milliseconds % 1000:03}"


@given(st.lists(st.tuples(PARTS, st.sampled_from([", ", " : "])), min_size=1, max_size=30))
def test_every_try_that_is_written_is_read(
    tries: list[tuple[tuple[str, int | None, int | None, int | None], str]],
) -> None:
    def joined(values: list[str]) -> str:
        return "".join(value + join for value, (_, join) in zip(values, tries, strict=True))[: -len(tries[-1][1])]

    columns = [
        joined([part[0] for part, _ in tries]),
        joined([str(part[1] or "-") for part, _ in tries]),
        joined([seconds(part[2]) for part, _ in tries]),
        joined([seconds(part[3]) for part, _ in tries]),
    ]
    found = parse(HEAD + " ".join(columns).encode(), NOW)
    assert not isinstance(found, Passed)
    assert [(one.endpoint, one.status, seconds_of(one.connected), seconds_of(one.answered)) for one in found] == [
        part for part, _ in tries
    ]
    assert all(len(events_of(one, "p")) == (one.failed is None) for one in found)
    assert [one.began for one in found] == sorted(one.began for one in found)


def seconds_of(found: float | None) -> int | None:
    return None if found is None else round(found * 1000)


@given(st.binary(max_size=300), st.integers(0, 40))
def test_any_bytes_are_judged(noise: bytes, at: int) -> None:
    line = b"10.0.0.6:5001, 10.0.0.6:5000 502, 200 -, 0.001 -, 0.250"
    for datagram in (noise, HEAD + noise, HEAD + line[:at] + noise + line[at:]):
        assert isinstance(parse(datagram, NOW), Passed | tuple)


@pytest.mark.parametrize("unit", [b"a : ", b", ", b" : ", b"-, ", b" ", b"1.000, ", b"200 : ", b": "])
def test_a_long_line_takes_no_long_time(unit: bytes) -> None:
    """The pattern is tried in time that grows with the line, not with its square or worse."""
    for end in (b"", b"x", b" 200", b" 200 - - -"):
        assert isinstance(parse((HEAD + unit * LONGEST)[: LONGEST - 16] + end, NOW), Passed | tuple)
