# SPDX-License-Identifier: Apache-2.0
"""HTTP/1 responses by the packets of real connections: what is a response, what is not, and what a lost one is."""

from __future__ import annotations

import errno
import socket
import struct
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from tidegate.errors import UnavailableError
from tidegate.http.watch import HttpWatch
from tidegate.identity.services import Service
from tidegate.kernel.endpoints import Endpoint, Evidence, Seen
from tidegate.kernel.layouts import PoolEvidence, TcpFailure
from tidegate.kernel.probe import probe
from tidegate.model.fields import Role
from tidegate.signals.http import IDLE, HttpSignal
from tidegate.signals.http_fields import CLASSES, Counter
from tidegate.signals.tcp import TcpSignal

pytestmark = pytest.mark.kernel

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def failed(status: int) -> bytes:
    return b"HTTP/1.1 %d No\r\nContent-Length: 0\r\n\r\n" % status


class Watching:
    """The programs, and an endpoint that is watched."""

    def __init__(self, address: str = "127.0.0.1") -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.server = socket.socket(family)
        self.server.bind((address, 0))
        self.server.listen(16)
        self.endpoint = Endpoint(ip_address(address), self.server.getsockname()[1])
        self.tcp = TcpSignal.start(256, 4096)
        self.http = HttpWatch(self.tcp.bpf.maps, Path(probe().cgroup2 or "/"), 256)
        self.room = self.tcp.bpf.maps["pool_counts"].max_entries
        self._clients: list[socket.socket] = []

    def watch(self, timeout: float = 0.0) -> None:
        self.http.watch({self.endpoint: timeout})
        assert self.http.refused is None

    def connect(self) -> tuple[socket.socket, socket.socket]:
        client = socket.create_connection((str(self.endpoint.address), self.endpoint.port))
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        served, _ = self.server.accept()
        served.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._clients += [client, served]
        return client, served

    def responses(self) -> dict[str, int]:
        """Return what was counted since the last call, by class."""
        assert self._signal is not None
        found = dict.fromkeys(CLASSES, 0)
        for record in self._signal.read(time.monotonic()):
            assert record.endpoint == str(self.endpoint)
            assert record.role is Role.CLIENT
            for name, count in zip(CLASSES, record.counters[Counter.RESPONSES :], strict=False):
                found[name] += count
        return {name: count for name, count in found.items() if count}

    @property
    def _signal(self) -> HttpSignal | None:
        return self.http._signal

    def told(self) -> list[tuple[str, int, int]]:
        """Return evidence, code and errno of what was told since the last call."""
        return [(one.evidence.name.lower(), one.code, one.error) for one in self.evidence()]

    def evidence(self) -> list[Evidence]:
        found = self.http.endpoints.evidence()
        assert {one.endpoint for one in found} <= {self.endpoint}
        return found

    def close(self) -> None:
        for each in (*self._clients, self.server):
            each.close()
        self.http.close()
        self.tcp.close()


@pytest.fixture(params=["127.0.0.1", "::1"], ids=["IPv4", "IPv6"])
def watching(request: pytest.FixtureRequest) -> Iterator[Watching]:
    made = Watching(request.param)
    try:
        yield made
    finally:
        made.close()


def exchange(client: socket.socket, served: socket.socket, *answer: bytes, request: bytes = GET) -> None:
    """Send a request, let it be read, and send an answer in these segments, each read before the next is sent."""
    client.sendall(request)
    receive(served, len(request))
    for part in answer:
        served.sendall(part)
        receive(client, len(part))


def receive(sock: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        part = sock.recv(size - len(found))
        assert part
        found += part
    return found


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


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


RESET = ("reset", 0, errno.ECONNRESET)


def test_a_reset_while_a_request_waits_is_told(watching: Watching) -> None:
    watching.watch()
    client, served = watching.connect()
    exchange(client, served, OK)
    client.sendall(GET)
    receive(served, len(GET))
    reset(served)
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    assert watching.told() == [RESET]


def test_a_reset_before_any_byte_is_told(watching: Watching) -> None:
    watching.watch()
    client, served = watching.connect()
    reset(served)
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    assert watching.told() == [RESET]


def test_a_connection_that_is_closed_instead_of_an_answer_is_told(watching: Watching) -> None:
    watching.watch()
    client, served = watching.connect()
    client.sendall(GET)
    receive(served, len(GET))
    served.close()
    assert client.recv(1) == b""
    assert watching.told() == [("reset", 0, 0)]


@pytest.mark.parametrize("ends", ["close", "reset"])
def test_the_end_of_an_idle_connection_is_no_failure(watching: Watching, ends: str) -> None:
    watching.watch()
    client, served = watching.connect()
    exchange(client, served, OK)
    if ends == "close":
        # The FIN leaves before the request comes.
        served.close()
        client.sendall(GET)  # too late: it is closed, and the answer is a reset
        assert client.recv(1) == b""
    else:
        reset(served)
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert watching.told() == []
    assert watching.responses() == {"2xx": 1}


def test_a_caller_that_gives_up_is_no_failure_unless_it_waited_too_long(watching: Watching) -> None:
    watching.watch(timeout=0.2)
    client, served = watching.connect()
    client.sendall(GET)
    receive(served, len(GET))
    client.close()
    assert watching.told() == []
    client, served = watching.connect()
    client.sendall(GET)
    receive(served, len(GET))
    time.sleep(0.25)
    client.close()
    assert watching.told() == [("silence", 0, 0)]
    served.close()
    assert watching.told() == []


def test_silence_is_told_once_a_request_and_under_tls_too(watching: Watching) -> None:
    watching.watch(timeout=0.2)
    client, served = watching.connect()
    exchange(client, served, b"\x16\x03\x03" + bytes(100), request=b"\x16\x03\x01" + bytes(100))
    watching.http.find_silence()
    time.sleep(0.25)
    watching.http.find_silence()
    assert watching.told() == []  # nothing waits
    client.sendall(b"\x17\x03\x03" + bytes(100))
    watching.http.find_silence()
    assert watching.told() == []
    time.sleep(0.25)
    watching.http.find_silence()
    watching.http.find_silence()
    (one,) = watching.evidence()
    assert one.evidence is PoolEvidence.SILENCE
    assert 200_000_000 <= one.age_ns < 10_000_000_000
    assert one.source_port == client.getsockname()[1]
    receive(served, 103)
    served.sendall(bytes(10))
    receive(client, 10)
    client.sendall(bytes(10))
    time.sleep(0.25)
    watching.http.find_silence()
    assert watching.told() == [("silence", 0, 0)]
    receive(served, 10)
    reset(served)
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    assert watching.told() == []  # the same request fails once
    assert watching.http.endpoints.seen()[watching.endpoint].answered == 2


def test_connections_that_are_open_already_are_followed(watching: Watching) -> None:
    client, served = watching.connect()
    client.sendall(GET)
    receive(served, len(GET))
    watching.watch()
    served.sendall(OK)  # to a request that nobody saw
    receive(client, len(OK))
    exchange(client, served, failed(500))
    assert watching.responses() == {"5xx": 1}
    watching.http.watch({})
    exchange(client, served, failed(500))
    assert [code for _, code, _ in watching.told()] == [500]


def test_connects_that_fail_are_told_with_the_reason(watching: Watching) -> None:
    watching.watch()
    watching.connect()
    watching.server.close()
    family = socket.AF_INET6 if watching.endpoint.address.version == 6 else socket.AF_INET
    with socket.socket(family) as client, pytest.raises(ConnectionRefusedError):
        client.connect((str(watching.endpoint.address), watching.endpoint.port))
    (one,) = watching.evidence()
    assert (one.evidence, one.code) == (PoolEvidence.CONNECT, TcpFailure.REFUSED)
    assert (one.error, one.retransmits, one.connected) == (errno.ECONNREFUSED, 0, 1)
    assert 0 < one.age_ns < 1_000_000_000


def test_an_ipv4_address_is_the_same_within_ipv6() -> None:
    watching = Watching()
    try:
        watching.watch()
        with socket.socket(socket.AF_INET6) as client:
            client.connect((f"::ffff:{watching.endpoint.address}", watching.endpoint.port))
            served, _ = watching.server.accept()
            with served:
                exchange(client, served, failed(500))
        assert watching.responses() == {"5xx": 1}
        assert [code for _, code, _ in watching.told()] == [500]
        assert watching.http.endpoints.seen()[watching.endpoint].connected == 1
    finally:
        watching.close()


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


def test_nobody_owes_an_answer_in_http_2_and_after_an_upgrade(watching: Watching) -> None:
    watching.watch(timeout=0.1)
    client, served = watching.connect()
    exchange(client, served, bytes(9), request=b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    client.sendall(bytes(13))  # WINDOW_UPDATE
    upgraded, switched = watching.connect()
    exchange(upgraded, switched, b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n")
    upgraded.sendall(b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58")
    time.sleep(0.2)
    watching.http.find_silence()
    assert watching.told() == []
    assert watching.http.endpoints.seen()[watching.endpoint].is_encrypted


def test_a_socket_that_connects_again_is_followed_to_where_it_goes(watching: Watching) -> None:
    family = watching.server.family
    with socket.socket(family) as closed:
        closed.bind((str(watching.endpoint.address), 0))
        nobody = Endpoint(watching.endpoint.address, closed.getsockname()[1])
    watching.http.watch({watching.endpoint: 0.0, nobody: 0.0})
    with socket.socket(family) as client:
        with pytest.raises(ConnectionRefusedError):
            client.connect((str(nobody.address), nobody.port))
        client.connect((str(watching.endpoint.address), watching.endpoint.port))
        served, _ = watching.server.accept()
        with served:
            exchange(client, served, failed(503))
    told = watching.http.endpoints.evidence()
    assert [(one.endpoint, one.evidence) for one in told] == [
        (nobody, PoolEvidence.CONNECT),
        (watching.endpoint, PoolEvidence.RESPONSE),
    ]


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
