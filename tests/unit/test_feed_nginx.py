# SPDX-License-Identifier: Apache-2.0
"""nginx's log lines, as it writes them to syslog, and what is none."""

from __future__ import annotations

import random
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.feeds.nginx import Passed, parse
from tidegate.model.feed import Event, Kind

pytestmark = pytest.mark.unit

ERROR = b"<187>Nov 25 08:40:01 gateway nginx: "
ACCESS = b"<190>Nov 25 08:40:01 gateway nginx: "
AT = b"2026/11/25 08:40:01 [error] 812#812: *37 "
REQUEST = b', server: shop.example, request: "GET /cart HTTP/1.1", host: "shop.example"'
LIMITED = AT + b'limiting requests, excess: 20.990 by zone "one", client: 198.51.100.7' + REQUEST
COMBINED = b'198.51.100.7 - - [25/Nov/2026:08:40:01 +0000] "GET /cart HTTP/1.1" %d 162 "-" "curl/8"'


def event(kind: Kind, address: str = "198.51.100.7") -> Event:
    return Event(5.0, ip_address(address), kind)


@pytest.mark.parametrize(
    ("datagram", "expected"),
    [
        (ERROR + LIMITED, event(Kind.LIMITED)),
        (ERROR.replace(b"gateway ", b"") + LIMITED, event(Kind.LIMITED)),  # nohostname
        (ERROR.replace(b"nginx", b"shop_1") + LIMITED + b"\n", event(Kind.LIMITED)),
        (ERROR.replace(b"Nov 25", b"Nov  5") + LIMITED, event(Kind.LIMITED)),
        (ERROR + LIMITED.replace(b"198.51.100.7", b"2001:db8::7"), event(Kind.LIMITED, "2001:db8::7")),
        (ERROR + LIMITED.replace(b"198.51.100.7", b"::ffff:198.51.100.7"), event(Kind.LIMITED)),
        (ERROR + LIMITED.replace(b"limiting", b"delaying").replace(b"[error]", b"[warn]"), event(Kind.LIMITED)),
        (
            ERROR + AT + b'limiting connections by zone "addr", client: 198.51.100.7' + REQUEST,
            event(Kind.LIMITED),
        ),
        (ERROR + LIMITED.replace(b"requests, ", b"requests, dry run, "), Passed.DRY_RUN),
        (
            ERROR + AT + b'limiting connections, dry run, by zone "addr", client: 198.51.100.7' + REQUEST,
            Passed.DRY_RUN,
        ),
        (ERROR + LIMITED.replace(b"client: 198.51.100.7", b"client: unix:"), Passed.NO_ADDRESS),
        (ERROR + LIMITED.replace(b"198.51.100.7", b"198.51.100.700"), Passed.MALFORMED),
        (ERROR + LIMITED.replace(b"198.51.100.7", b"fe80::1%eth0"), Passed.MALFORMED),
        (ERROR + LIMITED.partition(b", client")[0], Passed.MALFORMED),
        (ERROR + b"2026/11/25 08:40:01 [notice] 812#812: signal process started", Passed.OTHER),
        (ACCESS + COMBINED % 429, event(Kind.TOO_MANY)),
        (ACCESS + COMBINED % 401, event(Kind.UNAUTHORIZED)),
        (ACCESS + COMBINED % 403, event(Kind.UNAUTHORIZED)),
        (ACCESS + COMBINED % 200, Passed.OTHER),
        (ACCESS + COMBINED.replace(b"198.51.100.7", b"unix:") % 401, Passed.NO_ADDRESS),
        (ACCESS + b"198.51.100.7 198.51.100.7 403", event(Kind.UNAUTHORIZED)),
        (ACCESS + b"2001:db8::7 2001:db8::7 429", event(Kind.TOO_MANY, "2001:db8::7")),
        (ACCESS + b"198.51.100.7 198.51.100.7 503", Passed.OTHER),
        (ACCESS + b"10.0.0.2 198.51.100.7 429", Passed.BEHIND_PROXY),
        (ACCESS + b"unix: 198.51.100.7 429", Passed.NO_ADDRESS),
        (ACCESS + b"198.51.100.7 198.51.100.7 42", Passed.MALFORMED),
        (ACCESS, Passed.MALFORMED),
        (b"", Passed.MALFORMED),
        (LIMITED, Passed.MALFORMED),  # a file's line, without syslog's header
    ],
)
def test_lines(datagram: bytes, expected: Event | Passed) -> None:
    assert parse(datagram, 5.0) == expected


@pytest.mark.parametrize(
    ("request_line", "user"),
    [
        # nginx writes a quote as \x22, so that a value never ends early.
        (rb"GET /\x22 401 0 \x22 HTTP/1.1", b"-"),
        (b"GET / HTTP/1.1", rb"9.9.9.9 - - [x] \x22GET / HTTP/1.1\x22 401 0"),
        (b"GET / HTTP/1.1", b"[25/Nov/2026:08:40:01 +0000] 401 0"),
        (rb"\x16\x03\x01\x02\x00", b"-"),
        (b"", b"-"),
        (rb"GET /\"401\" HTTP/1.1", b"-"),  # escape=json
    ],
)
def test_what_a_client_sends_is_not_read_as_a_status(request_line: bytes, user: bytes) -> None:
    line = b'198.51.100.7 - %s [25/Nov/2026:08:40:01 +0000] "%s" %d 0 "-" "-"'
    assert parse(ACCESS + line % (user, request_line, 200), 5.0) is Passed.OTHER
    assert parse(ACCESS + line % (user, request_line, 429), 5.0) == event(Kind.TOO_MANY)


def test_a_path_that_looks_like_a_refusal_bans_nobody() -> None:
    """nginx writes a path as it is, within other messages, ahead of the client."""
    told = b'limiting requests, excess: 1.000 by zone "one", client: 192.0.2.1, server: x'
    missing = b'open() "/srv/' + told + b'" failed (2: No such file or directory), client: 198.51.100.7' + REQUEST
    assert parse(ERROR + AT + missing, 5.0) is Passed.OTHER
    asked = LIMITED.replace(b"/cart", b"/, client: 192.0.2.1, server: x")
    assert parse(ERROR + asked, 5.0) == event(Kind.LIMITED)


def mutated(random_: random.Random, line: bytes) -> bytes:
    """Return a line with some of its bytes changed, removed, repeated or cut off."""
    found = bytearray(line)
    for _ in range(random_.randrange(1, 6)):
        at = random_.randrange(len(found)) if found else 0
        match random_.randrange(4):
            case 0:
                found[at : at + 1] = random_.randbytes(1)
            case 1:
                del found[at : at + random_.randrange(8)]
            case 2:
                found[at:at] = found[at : at + random_.randrange(40)]
            case _:
                del found[at:]
    return bytes(found)


def test_2000_fuzzed_lines_are_judged_without_a_traceback() -> None:
    random_ = random.Random(5)
    lines = [ERROR + LIMITED, ACCESS + COMBINED % 429, ACCESS + b"198.51.100.7 198.51.100.7 403"]
    found = [parse(mutated(random_, random_.choice(lines)), 5.0) for _ in range(2000)]
    assert len(found) == 2000
    assert all(isinstance(one, Event | Passed) for one in found)
    # The fuzz reaches both sides of the parser.
    assert sum(isinstance(one, Event) for one in found) > 200
    assert found.count(Passed.MALFORMED) > 200


@given(st.binary(max_size=300))
def test_any_bytes_are_judged(noise: bytes) -> None:
    for head in (b"", ERROR, ERROR + AT, ERROR + AT + b"limiting requests"):
        assert not isinstance(parse(head + noise, 5.0), Event)
