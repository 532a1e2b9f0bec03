# SPDX-License-Identifier: Apache-2.0
"""Pools that nginx asks the agent for: what it makes of the answers, and what the responder takes."""

from __future__ import annotations

import contextlib
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dnslib
import pytest

from lab.closedloop import ClosedLoop
from lab.gateway import PORT
from lab.lab import ROOT, Lab
from lab.network import enter
from tests.lab.rigs.dns import LISTEN, NAME, DnsRig, memory
from tests.lab.rigs.rig import ENDPOINTS, journal
from tidegate.config.pools import DnsDriver as Config
from tidegate.config.units import Listen
from tidegate.errors import DriverError
from tidegate.model.driver import Use
from tidegate.pools import dns_responder
from tidegate.pools.dns import DnsDriver
from tidegate.pools.dns_responder import Responder, Sockets
from tidegate.pools.dns_zone import Zone
from tidegate.pools.driver import Wanted
from tidegate.pools.plan import is_done

pytestmark = pytest.mark.lab

FIRST, SECOND, THIRD = ENDPOINTS
PATIENCE = 10.0
#: How often the first endpoint is taken out and let back below load.
ROUNDS = 10


def until(done: Callable[[], bool], patience: float = PATIENCE) -> None:
    end = time.monotonic() + patience
    while not done():
        assert time.monotonic() < end
        time.sleep(0.005)


def settle(driver: DnsDriver, out: Wanted) -> None:
    driver.apply(out)
    until(lambda: is_done(out, driver.read()))


# Before nginx.


def test_no_request_fails_while_endpoints_come_and_go(lab: Lab) -> None:
    rig = DnsRig(lab)
    driver = rig.driver(memory())
    load = ClosedLoop(rig.client, "10.0.0.16", PORT, workers=20)
    told: list[tuple[float, float, float]] = []
    for _ in range(ROUNDS):
        began = time.monotonic()
        settle(driver, {FIRST: 0})
        said = time.monotonic()
        assert said - began < driver.settles
        time.sleep(0.1)  # of load that it gets no part of
        told.append((began, said, time.monotonic()))
        settle(driver, {})
    requests = load.stop()
    driver.close()
    assert {request.status for request in requests} == {200}
    by_first = [request for request in requests if request.body == FIRST]
    for _, said, back in told:
        assert not [request for request in by_first if said <= request.start and request.end < back]
        assert [request for request in requests if said <= request.start and request.end < back]
    assert by_first[-1].start > told[-1][2], "it is back"


def test_nginx_keeps_what_it_has_while_nobody_answers(lab: Lab) -> None:
    rig = DnsRig(lab)
    driver = rig.driver(memory())
    settle(driver, {FIRST: 0})
    load = ClosedLoop(rig.client, "10.0.0.16", PORT, workers=3)
    refused = rig.gateway.snmp()["Udp.NoPorts"]
    driver.close()
    until(lambda: rig.gateway.snmp()["Udp.NoPorts"] >= refused + 2)  # it has asked in vain
    assert {request.body for request in load.stop()} == {SECOND, THIRD}
    driver = rig.driver(memory())
    until(lambda: driver.read()[FIRST] is Use.ACTIVE and set(rig.reached(30)) == set(ENDPOINTS))
    driver.close()


def test_nginx_drops_all_servers_at_nxdomain(lab: Lab) -> None:
    """Why it is never answered."""
    rig = DnsRig(lab)
    sockets, ends = rig.opener(LISTEN), threading.Event()
    sockets.udp.settimeout(0.1)

    def deny() -> None:
        while not ends.is_set():
            with contextlib.suppress(TimeoutError):
                packet, asker = sockets.udp.recvfrom(1024)
                answer = dnslib.DNSRecord.parse(packet).reply()
                answer.header.rcode = dnslib.RCODE.NXDOMAIN
                sockets.udp.sendto(answer.pack(), asker)

    thread = threading.Thread(target=deny)
    thread.start()
    try:
        until(lambda: set(rig.reached(3)) == {"502"})
    finally:
        ends.set()
        thread.join()
        for one in sockets:
            one.close()


def test_a_large_pool_is_asked_for_by_tcp(lab: Lab) -> None:
    endpoints = [f"127.0.1.{number}:5000" for number in range(1, 61)]
    rig = DnsRig(lab, endpoints=endpoints)
    driver = rig.driver(memory())
    until(lambda: set(rig.reached(60)) == set(endpoints))
    settle(driver, {endpoints[0]: 0, endpoints[7]: 0})
    assert set(rig.reached(58)) == set(endpoints) - {endpoints[0], endpoints[7]}
    driver.close()


def test_endpoints_that_share_an_address_are_told_apart_by_a_service(lab: Lab) -> None:
    endpoints = ["127.0.1.1:5000", "127.0.1.1:5001", "127.0.1.2:5001"]
    rig = DnsRig(lab, server=f"{NAME} service=http", endpoints=endpoints)
    driver = rig.driver(memory())
    assert "service=http" in driver.discover().warnings[0]
    until(lambda: set(rig.reached(30)) == set(endpoints))
    settle(driver, {endpoints[0]: 0})
    assert not driver.discover().warnings, "it asks for services"
    assert set(rig.reached(30)) == set(endpoints[1:])
    settle(driver, {endpoints[2]: 0})
    assert set(rig.reached(30)) == set(endpoints[:2])
    driver.restore()
    assert set(rig.reached(30)) == set(endpoints)
    driver.close()


def test_a_whole_family_can_be_out_for_who_asks_for_both(lab: Lab) -> None:
    endpoints = ["10.0.0.6:5000", "[fd00::7]:5000", "[fd00::8]:5000"]
    rig = DnsRig(lab, family="", endpoints=endpoints)
    driver = rig.driver(memory())
    until(lambda: set(rig.reached(30)) == set(endpoints))
    settle(driver, dict.fromkeys(endpoints[1:], 0))
    assert set(rig.reached(30)) == set(endpoints[:1])
    settle(driver, {endpoints[0]: 0})
    assert set(rig.reached(30)) == set(endpoints[1:])
    driver.restore()
    assert set(rig.reached(30)) == set(endpoints)
    driver.close()


def test_all_of_them_are_never_out(lab: Lab) -> None:
    rig = DnsRig(lab)
    driver = rig.driver(memory())
    settle(driver, {FIRST: 0})
    driver.apply(dict.fromkeys(ENDPOINTS, 0))
    until(lambda: driver.read() == dict.fromkeys(ENDPOINTS, Use.ACTIVE))
    assert set(rig.reached(30)) == set(ENDPOINTS)
    driver.close()


_AGENT = f"""
import sys, time
from pathlib import Path
from tests.lab.rigs.rig import ENDPOINTS, journal
from tests.lab.rigs.dns import LISTEN, NAME
from tidegate.config.pools import DnsDriver as Config
from tidegate.model.driver import Use
from tidegate.pools.dns import DnsDriver
driver = DnsDriver(ENDPOINTS, Config(name=NAME, listen=LISTEN), journal(Path(sys.argv[1]), "dns"))
driver.read()
driver.apply({{"{FIRST}": 0}})
while driver.read()["{FIRST}"] is not Use.EJECTED:
    time.sleep(0.01)
print("out", flush=True)
sys.stdin.read()
"""


def test_what_a_killed_agent_has_done_is_put_back(lab: Lab, tmp_path: Path) -> None:
    rig = DnsRig(lab)
    argv = enter(rig.gateway.namespace, [sys.executable, "-c", _AGENT, str(tmp_path)])
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as agent:
        assert agent.stdout is not None
        assert agent.stdout.readline() == "out\n"
        assert set(rig.reached(30)) == {SECOND, THIRD}
        agent.send_signal(signal.SIGKILL)
        agent.wait()
    assert list(tmp_path.glob("*.json"))
    guard = DnsDriver(ENDPOINTS, Config(name=NAME, listen=LISTEN), journal(tmp_path, "dns"), opener=rig.opener)
    guard.restore()
    guard.close()
    assert not list(tmp_path.glob("*.json"))
    assert set(rig.reached(30)) == set(ENDPOINTS)


# Without nginx.


@pytest.fixture
def free() -> Listen:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return Listen(*taken.getsockname())


def driver_at(listen: Listen, name: str = NAME, path: Path | None = None) -> DnsDriver:
    kept = memory() if path is None else journal(path, "dns")
    return DnsDriver(ENDPOINTS, Config(name=name, listen=listen), kept)


def question(name: str = NAME) -> bytes:
    return bytes(dnslib.DNSRecord.question(name).pack())


def asked(listen: Listen, name: str = NAME, source: str = "127.0.0.1") -> list[str] | int:
    """Ask once; return the addresses, or the error's code."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(PATIENCE)
        client.bind((source, 0))
        client.connect(listen)
        client.send(question(name))
        answer = dnslib.DNSRecord.parse(client.recv(4096))
    return answer.header.rcode or sorted(str(rr.rdata) for rr in answer.rr)


ALL = ["10.0.0.6", "10.0.0.7", "10.0.0.8"]


def test_pools_share_an_address_and_the_last_one_closes_it(free: Listen) -> None:
    one, two, twin = driver_at(free), driver_at(free, "auth.tidegate.internal"), driver_at(free)
    one.discover()
    two.discover()
    two.apply({FIRST: 0})
    assert asked(free) == ALL
    assert asked(free, "auth.tidegate.internal") == ALL[1:]
    with pytest.raises(DriverError, match="expected one pool with the name inventory") as caught:
        twin.discover()
    assert not caught.value.away
    twin.close()
    one.close()
    assert asked(free) == 5, "refused, at which nginx keeps what it has"
    assert asked(free, "auth.tidegate.internal") == ALL[1:]
    two.close()
    for one_more in dns_responder.bind(free):
        one_more.close()


def test_an_address_that_is_taken_is_named_and_tried_again(free: Listen) -> None:
    taken = dns_responder.bind(free)
    driver = driver_at(free)
    with pytest.raises(DriverError, match=rf"dns {free}: expected to answer .* ss -lnptu") as caught:
        driver.discover()
    assert caught.value.away
    for one in taken:
        one.close()
    driver.discover()
    assert asked(free) == ALL
    driver.close()


def test_an_address_of_another_host_is_named() -> None:
    with pytest.raises(DriverError, match="address of this host"):
        driver_at(Listen("192.0.2.1", 5300)).discover()


def test_where_nobody_asks_that_is_said_and_nothing_is_forgotten(free: Listen, tmp_path: Path) -> None:
    driver = driver_at(free, path=tmp_path)
    driver.apply({FIRST: 0})
    assert driver.read()[FIRST] is Use.ACTIVE
    expected = rf"nobody asks for {NAME} at {free}; .* server {NAME}:5000 resolve; resolver {free} ipv6=off;"
    with pytest.raises(DriverError, match=expected) as caught:
        driver.restore()
    assert caught.value.away
    with pytest.raises(DriverError, match=expected):
        driver.read()
    driver.close()
    following = driver_at(free, path=tmp_path)
    assert following.read()[FIRST] is Use.EJECTED
    assert asked(free) == ALL[1:]
    following.close()


@pytest.fixture
def responder() -> Iterator[Responder]:
    made = Responder(Listen("127.0.0.1", 0), dns_responder.bind(Listen("127.0.0.1", 0)))
    made.add(Zone(NAME, ENDPOINTS, 1.0))
    yield made
    made.close()


def at(responder: Responder) -> Listen:
    return Listen(*responder.address)


def test_whatever_arrives_the_next_question_is_answered(responder: Responder) -> None:
    chance = random.Random(5300)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect(at(responder))
        for number in range(1000):
            packet = bytearray(question() if number % 2 else chance.randbytes(chance.randrange(2000)))
            for _ in range(chance.randrange(4)):
                if packet:
                    packet[chance.randrange(len(packet))] = chance.randrange(256)
            client.send(bytes(packet))
            if number % 50 == 49:
                assert asked(at(responder)) == ALL  # and so none is lost as they are too many
    assert sum(responder.counts.values()) == 1000 + 20
    assert responder.counts["malformed"] > 400


def test_a_question_may_come_in_parts_and_many_at_once(responder: Responder) -> None:
    packet = struct.pack("!H", len(question())) + question()
    with socket.create_connection(at(responder), PATIENCE) as client:
        for byte in packet[:-1]:
            client.send(bytes([byte]))
        client.sendall(packet[-1:] + 20 * packet)
        client.shutdown(socket.SHUT_WR)
        answers = b"".join(iter(lambda: client.recv(65536), b""))
    lengths = 0
    while answers:
        (length,) = struct.unpack_from("!H", answers)
        assert len(dnslib.DNSRecord.parse(answers[2 : 2 + length]).rr) == 3
        answers = answers[2 + length :]
        lengths += 1
    assert lengths == 21


def test_connections_are_bounded_and_junk_ends_one(responder: Responder) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(socket.create_connection(at(responder), PATIENCE))
        last = stack.enter_context(socket.create_connection(at(responder), PATIENCE))
        last.sendall(struct.pack("!H", len(question())) + question())
        assert len(dnslib.DNSRecord.parse(last.recv(4096)[2:]).rr) == 3
        last.sendall(b"\xff\xff" + bytes(100))
        assert last.recv(4096) == b""
        assert asked(at(responder)) == ALL
        until(lambda: responder.counts["malformed"] == 1)


def test_others_than_this_host_are_not_answered_on_loopback(lab: Lab) -> None:
    rig = DnsRig(lab)
    made = Responder(LISTEN, rig.opener(LISTEN))
    made.add(Zone(NAME, ENDPOINTS, 1.0))
    script = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('10.0.0.16', 0)); "
        f"s.sendto({question()!r}, ('127.0.0.1', 5300))"
    )
    subprocess.run(enter(rig.gateway.namespace, [sys.executable, "-c", script]), check=True)
    until(lambda: made.counts["foreign"] == 1)
    made.close()


def test_an_answer_leaves_from_the_address_that_was_asked() -> None:
    sockets: Sockets = dns_responder.bind(Listen("0.0.0.0", 0))
    made = Responder(Listen("0.0.0.0", 0), sockets)
    made.add(Zone(NAME, ENDPOINTS, 1.0))
    assert asked(Listen("127.0.0.77", made.address[1]), source="127.0.0.1") == ALL
    made.close()
