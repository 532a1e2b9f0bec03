# SPDX-License-Identifier: Apache-2.0
"""HTTP/1 responses by the packets of real connections: what is a response, what is not, and what a lost one is."""

from __future__ import annotations

import time
from ipaddress import ip_address

import pytest

from tests.kernel.watching import CONTINUE, GET, OK, Watching, exchange, failed, receive, watching
from tidegate.errors import UnavailableError
from tidegate.identity.services import Service
from tidegate.kernel.endpoints import Endpoint, Seen
from tidegate.kernel.layouts import PoolEvidence
from tidegate.signals.http import IDLE
from tidegate.signals.http_fields import Counter

__all__ = ["watching"]
pytestmark = pytest.mark.kernel


def test_responses_are_counted_by_class_and_failures_are_told(watching: Watching) -> None:
    watching.watch()
    client, served = watching.connect()
    for status in (200, 204, 302, 404, 500, 502, 503, 504, 200):
        exchange(client, served, failed(status))
    assert watching.responses() == {"2xx": 3, "3xx": 1, "4xx": 1, "5xx": 4}
    found = watching.evidence()
    assert [(one.evidence, one.code) for one in found] == [
        (PoolEvidence.RESPONSE, status) for status in (500, 502, 503, 504)
    ]
    assert [one.head for one in found] == [failed(one.code) for one in found]
    assert [one.answered for one in found] == [4, 4, 4, 4]  # before each
    assert {one.source_port for one in found} == {client.getsockname()[1]}
    assert watching.http.endpoints.seen()[watching.endpoint][:2] == (1, 5)


def test_the_time_is_from_the_request_to_the_first_byte(watching: Watching) -> None:
    watching.watch()
    client, served = watching.connect()
    began = time.monotonic_ns()
    client.sendall(GET[:10])
    time.sleep(0.05)
    client.sendall(GET[10:])
    receive(served, len(GET))
    served.sendall(failed(503))
    took = time.monotonic_ns() - began
    receive(client, len(failed(503)))
    (one,) = watching.evidence()
    assert 50_000_000 <= one.age_ns <= took + 50_000_000
    assert one.at_ns >= began


@pytest.mark.parametrize(
    ("parts", "classes"),
    [
        ([OK[:40], OK[40:]], {"2xx": 1}),
        ([CONTINUE, OK], {"1xx": 1, "2xx": 1}),
        ([CONTINUE + OK], {"1xx": 1, "2xx": 1}),
        ([b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", failed(404)], {"1xx": 1, "4xx": 1}),
        # A body is a body, whatever it looks like and wherever its segments begin.
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n", failed(500), failed(503)], {"2xx": 1}),
        ([b"HTTP/1.0 301 Moved\r\n\r\n"], {"3xx": 1}),
    ],
    ids=["split head", "interim", "interim in one", "hints", "trap", "HTTP/1.0"],
)
def test_what_a_response_is(watching: Watching, parts: list[bytes], classes: dict[str, int]) -> None:
    watching.watch()
    client, served = watching.connect()
    exchange(client, served, *parts)
    exchange(client, served, OK)
    assert watching.responses() == {**classes, "2xx": classes.get("2xx", 0) + 1}
    assert watching.told() == []


def test_a_first_line_in_two_segments_is_counted_as_unread(watching: Watching) -> None:
    watching.watch()
    client, served = watching.connect()
    exchange(client, served, OK)
    exchange(client, served, OK[:5], OK[5:])
    exchange(client, served, OK)
    assert watching.responses() == {"2xx": 2}
    assert watching.http.endpoints.losses()["pool_unread"] == 1


def test_a_request_of_many_segments_and_an_early_answer(watching: Watching) -> None:
    watching.watch()
    client, served = watching.connect()
    client.sendall(b"POST / HTTP/1.1\r\nContent-Length: 300000\r\n\r\n")
    receive(served, 43)
    for _ in range(3):
        client.sendall(bytes(100_000))
        receive(served, 100_000)
    served.sendall(failed(503))
    receive(client, len(failed(503)))
    assert watching.responses() == {"5xx": 1}
    # The answer comes while the body is still sent; the connection is closed then, as servers do.
    client.sendall(b"POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\n")
    receive(served, 39)
    served.sendall(failed(500))
    receive(client, len(failed(500)))
    client.sendall(bytes(10))
    receive(served, 10)
    served.close()
    assert client.recv(1) == b""
    assert watching.responses() == {"5xx": 1}
    assert [code for _, code, _ in watching.told()] == [503, 500]


def test_what_is_not_http_is_said_once_and_left_alone(watching: Watching) -> None:
    watching.watch()
    assert not watching.http.endpoints.seen()[watching.endpoint].is_encrypted
    client, served = watching.connect()
    exchange(client, served, b"\x16\x03\x03\x00\x7a" + bytes(100), request=b"\x16\x03\x01" + bytes(100))
    exchange(client, served, failed(500))  # nobody looks any more
    assert watching.responses() == {}
    assert watching.told() == []
    assert watching.http.endpoints.seen()[watching.endpoint].is_encrypted


def test_an_upgrade_ends_http_without_a_word(watching: Watching) -> None:
    watching.watch()
    client, served = watching.connect()
    exchange(client, served, b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n")
    exchange(client, served, b"\x81\x05Hello", request=b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58")
    assert watching.responses() == {"1xx": 1}
    assert not watching.http.endpoints.seen()[watching.endpoint].is_encrypted
    assert watching.http.endpoints.losses()["pool_unread"] == 0


def test_rows_are_of_services(watching: Watching) -> None:
    watching.watch()
    client, served = watching.connect()
    exchange(client, served, OK)
    watching.http.read(lambda _: Service("shop.service"), 1.0)
    key = next(iter(watching.http._rows))
    assert (key.service, key.endpoint) == (Service("shop.service"), str(watching.endpoint))


def test_the_counts_of_an_endpoint_are_its_own(watching: Watching) -> None:
    """A connection to one that is watched no more counts for nobody, also where another has its place."""
    watching.watch()
    client, served = watching.connect()
    exchange(client, served, OK)
    others = {Endpoint(ip_address("192.0.2.1"), port): 0.0 for port in range(1, watching.room + 1)}
    watching.http.watch(others)
    exchange(client, served, OK)
    exchange(client, served, failed(500))
    assert all(seen[:3] == (0, 0, 0) for seen in watching.http.endpoints.seen().values())
    assert watching.told() == []
    with pytest.raises(UnavailableError, match="expected at most"):
        watching.http.watch({**others, watching.endpoint: 0.0})
    assert len(watching.http.endpoints.seen()) == watching.room
    watching.watch(timeout=5.0)
    assert watching.http.endpoints.seen()[watching.endpoint] == Seen(0, 0, 0, False)
    exchange(client, served, failed(500))  # its connection is followed as that of another one
    assert watching.told() == []
    client, served = watching.connect()
    exchange(client, served, OK)
    watching.watch(timeout=1.0)
    assert watching.http.endpoints.seen()[watching.endpoint] == Seen(1, 1, 0, False)


@pytest.mark.parametrize(
    "answer", [b"+PONG\r\n", b"\x00\x00\x00\x04\x01\x00\x00\x00\x00", b"* OK ready, tell me more\r\n"]
)
def test_answers_of_other_protocols_are_answers(watching: Watching, answer: bytes) -> None:
    watching.watch()
    client, served = watching.connect()
    for _ in range(3):
        exchange(client, served, answer, request=b"PING\r\n")
    seen = watching.http.endpoints.seen()[watching.endpoint]
    assert (seen.answered, seen.is_encrypted) == (3, True)
    assert watching.http.endpoints.losses()["pool_unread"] == 0


def test_rows_that_are_idle_are_removed_and_begin_anew(watching: Watching) -> None:
    watching.watch()
    client, served = watching.connect()
    signal = watching.http._signal
    assert signal is not None

    def read(now: float) -> list[int]:
        return [record.counters[Counter.RESPONSES + 1] for record in signal.read(now)]

    exchange(client, served, OK)
    assert read(100.0) == [1]
    assert read(100.0 + IDLE) == []
    exchange(client, served, OK)
    assert read(101.0 + IDLE) == [1]
    assert read(102.0 + 2 * IDLE) == []
    assert sum(count for count, _, _ in signal.bpf.maps["http_rows"].batches()) == 0
    exchange(client, served, OK)
    assert read(103.0 + 2 * IDLE) == [1]
