# SPDX-License-Identifier: Apache-2.0
"""Connects that are refused at once: whose, to what, how many get through, and until when."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from lab.network import cgroup_root, remove_cgroup
from tests.kernel.watching import GET, Watching, exchange, receive
from tests.kernel.watching import OK as OK_RESPONSE
from tidegate.kernel.endpoints import Endpoint, Failfast, key_of
from tidegate.kernel.layouts import POOL_COUNTS, POOL_ENDPOINT
from tidegate.kernel.objects import BpfObject
from tidegate.kernel.probe import probe
from tidegate.pools.failfast import Refusals

pytestmark = pytest.mark.kernel
ROOT = Path(probe().cgroup2 or "/")


class Refusing:
    """The attached program, and a server on loopback whose endpoint can be refused."""

    def __init__(self, bpf: BpfObject) -> None:
        self.bpf, self.driver = bpf, Failfast(bpf.maps)
        self.server = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port = self.server.getsockname()[1]
        self.endpoint = Endpoint(ip_address("127.0.0.1"), self.port)
        bpf.maps["pool_endpoints"][key_of(self.endpoint)] = bytes(POOL_ENDPOINT.size)  # the first place of all
        for name in ("failfast_4", "failfast_6"):
            bpf.links.append(bpf.programs[name].attach_cgroup(ROOT))

    def connect(self, address: str = "127.0.0.1", kind: int = socket.SOCK_STREAM) -> str:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, kind) as client:
            error = client.connect_ex((address, self.port))
            return errno.errorcode[error] if error else "ok"

    @property
    def refused(self) -> int:
        return int(POOL_COUNTS.unpack(self.bpf.maps["pool_counts"][bytes(4)])[2])

    def renew(self, seconds: float = 60.0) -> None:
        self.driver.renew(time.monotonic() + seconds)


@pytest.fixture
def refusing() -> Iterator[Refusing]:
    with BpfObject.named("failfast") as bpf:
        made = Refusing(bpf.load())
        with made.server:
            yield made


def test_a_connect_is_refused_and_all_others_are_not(refusing: Refusing) -> None:
    refusing.renew()
    assert refusing.connect() == "ok"
    refusing.driver.refuse(refusing.endpoint)
    assert [refusing.connect() for _ in range(3)] == ["ECONNREFUSED"] * 3
    assert refusing.connect("::ffff:127.0.0.1") == "ECONNREFUSED"
    assert refusing.connect(kind=socket.SOCK_DGRAM) == "ok"
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert socket.socket().connect_ex(other.getsockname()) == 0
    assert refusing.refused == 4
    refusing.driver.allow(refusing.endpoint)
    refusing.driver.allow(refusing.endpoint)
    assert refusing.connect() == "ok"
    assert refusing.refused == 4


def test_ipv6(refusing: Refusing) -> None:
    refusing.renew()
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        port = server.getsockname()[1]
        endpoint = Endpoint(ip_address("::1"), port)
        refusing.driver.refuse(endpoint)
        with socket.socket(socket.AF_INET6) as client:
            assert client.connect_ex(("::1", port)) == errno.ECONNREFUSED
        assert list(refusing.driver.entries()) == [endpoint]


def test_a_connect_that_does_not_block_is_refused_at_once_too(refusing: Refusing) -> None:
    refusing.renew()
    refusing.driver.refuse(refusing.endpoint)
    with socket.socket() as client:
        client.setblocking(False)
        assert client.connect_ex(("127.0.0.1", refusing.port)) == errno.ECONNREFUSED
    # TCP Fast Open connects by sending.
    with socket.socket() as client, pytest.raises(ConnectionRefusedError):
        client.sendto(b"hello", 0x20000000, ("127.0.0.1", refusing.port))  # MSG_FASTOPEN


def test_nothing_is_refused_once_the_lease_is_over(refusing: Refusing) -> None:
    refusing.driver.refuse(refusing.endpoint)
    assert refusing.connect() == "ok"  # nobody has taken a lease yet
    refusing.renew(0.5)
    assert refusing.connect() == "ECONNREFUSED"
    time.sleep(0.6)
    assert refusing.connect() == "ok"


def test_as_many_as_are_permitted_get_through(refusing: Refusing) -> None:
    """From several threads at once, and however often the lease is renewed meanwhile."""
    refusing.renew()
    refusing.driver.refuse(refusing.endpoint, permits=50)
    found = Counter[str]()
    turn = threading.Lock()

    def connects() -> None:
        mine = Counter(refusing.connect() for _ in range(100))
        with turn:
            found.update(mine)

    threads = [threading.Thread(target=connects) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        refusing.renew()
    for thread in threads:
        thread.join()
    assert found == {"ok": 50, "ECONNREFUSED": 350}
    refusing.driver.refuse(refusing.endpoint, permits=2)
    assert [refusing.connect() for _ in range(4)] == ["ok", "ok", "ECONNREFUSED", "ECONNREFUSED"]
    assert refusing.refused == 352


def test_a_scope_is_refused_and_others_are_not(refusing: Refusing) -> None:
    code = (
        "import socket, sys\n"
        "open(sys.argv[1] + '/cgroup.procs', 'w').write('0')\n"
        "print(socket.socket().connect_ex(('127.0.0.1', int(sys.argv[2]))))"
    )

    def connects_in(path: Path) -> int:
        argv = [sys.executable, "-c", code, str(path), str(refusing.port)]
        return int(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)

    refusing.renew()
    chosen, other = (cgroup_root() / f"tidegate-test-{name}-{os.getpid()}" for name in ("chosen", "other"))
    try:
        chosen.mkdir()
        other.mkdir()
        refusing.driver.refuse(refusing.endpoint, scope=7)
        assert connects_in(chosen) == 0
        refusing.driver.choose(7, [os.stat(chosen).st_ino])
        refusing.driver.choose(8, [os.stat(other).st_ino])
        assert connects_in(chosen) == errno.ECONNREFUSED
        assert connects_in(other) == 0
        assert refusing.connect() == "ok"
        refusing.driver.choose(7, [])
        assert connects_in(chosen) == 0
    finally:
        for made in (chosen, other):
            if made.exists():
                remove_cgroup(made)


@pytest.fixture
def driving() -> Iterator[tuple[Refusals, Watching]]:
    """The driver beside the programs that follow connections."""
    watching = Watching()
    try:
        watching.watch()
        driver = Refusals.start({**watching.tcp.bpf.maps, **watching.http.connections}, ROOT)
        driver.renew()
        try:
            yield driver, watching
        finally:
            driver.close()
    finally:
        watching.close()


def connects(watching: Watching) -> bool:
    with socket.socket() as client:
        error = client.connect_ex((str(watching.endpoint.address), watching.endpoint.port))
        assert error in (0, errno.ECONNREFUSED)
        return error == 0


def test_trials_are_told_and_permits_come_back(driving: tuple[Refusals, Watching]) -> None:
    driver, watching = driving
    driver.apply({watching.endpoint: 2}, [watching.endpoint])
    assert [connects(watching) for _ in range(4)] == [True, True, False, False]
    assert driver.begun() == {watching.endpoint: 2}
    assert driver.begun() == {}
    driver.apply({watching.endpoint: 0}, [watching.endpoint])  # as both are under way
    assert not connects(watching)
    driver.apply({watching.endpoint: 1}, [watching.endpoint])  # one has come back
    driver.apply({watching.endpoint: 1}, [watching.endpoint])
    assert [connects(watching) for _ in range(2)] == [True, False]
    assert driver.begun() == {watching.endpoint: 1}
    driver.apply({}, [watching.endpoint])
    assert connects(watching)
    assert watching.http.endpoints.seen()[watching.endpoint].refused == 4


def test_services_are_chosen_by_their_names(driving: tuple[Refusals, Watching]) -> None:
    driver, watching = driving
    mine = next(
        os.stat(ROOT / line.split("::", 1)[1].strip().lstrip("/")).st_ino
        for line in Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines()
        if line.startswith("0::")
    )
    driver.choose({watching.endpoint: ["shop/*", "nginx.service"]})
    driver.follow({mine: "nginx.service", mine + 1_000_000: "other.service"})
    driver.apply({watching.endpoint: 0}, [watching.endpoint])
    assert not connects(watching)
    driver.follow({mine: "other.service"})
    assert connects(watching)
    driver.follow({mine: "shop/cart"})
    assert not connects(watching)
    driver.choose({watching.endpoint: ["other*"]})
    driver.follow({mine: "shop/cart"})
    assert connects(watching)
    driver.choose({watching.endpoint: []})
    assert not connects(watching)


def test_idle_connections_are_ended_and_those_in_use_are_not(driving: tuple[Refusals, Watching]) -> None:
    driver, watching = driving
    kept, served = watching.connect()
    exchange(kept, served, OK_RESPONSE)
    waiting, slow = watching.connect()
    waiting.sendall(GET)
    receive(slow, len(GET))
    arriving, sending = watching.connect()
    exchange(arriving, sending, b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n")
    driver.end_idle()
    assert kept.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0  # nobody is out
    driver.apply({watching.endpoint: 0}, [watching.endpoint])
    for part in (b"a", b"b"):
        driver.end_idle()
        sending.sendall(part)
        receive(arriving, 1)
    with pytest.raises(ConnectionAbortedError):
        kept.recv(1)
    slow.sendall(OK_RESPONSE)
    assert receive(waiting, len(OK_RESPONSE)) == OK_RESPONSE
    sending.sendall(b"cd")
    assert receive(arriving, 2) == b"cd"
    for _ in range(2):
        driver.end_idle()
    for ended in (waiting, arriving):
        with pytest.raises(ConnectionAbortedError):
            ended.recv(1)
    driver.end_idle()
    assert watching.told() == []  # all of that was ours
