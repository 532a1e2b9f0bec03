# SPDX-License-Identifier: Apache-2.0
"""HTTP/1 connections that end, stay silent, are refused or were open before: which of it is a failure."""

from __future__ import annotations

import errno
import socket
import time

import pytest

from tests.kernel.watching import GET, OK, Watching, exchange, failed, receive, reset, watching
from tidegate.kernel.endpoints import Endpoint
from tidegate.kernel.layouts import PoolEvidence, TcpFailure

__all__ = ["watching"]
pytestmark = pytest.mark.kernel
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
