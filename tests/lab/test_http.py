# SPDX-License-Identifier: Apache-2.0
"""Responses of a real nginx behind a real gateway, also where packets are lost: as many as its own log has."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from lab.gateway import Nginx, Visitors
from lab.lab import Lab
from tests.lab.remains import wait_until
from tidegate.http.watch import HttpWatch
from tidegate.kernel.endpoints import Endpoint
from tidegate.kernel.layouts import PoolEvidence
from tidegate.kernel.probe import probe
from tidegate.signals.http_fields import CLASSES
from tidegate.signals.http_fields import Counter as Place
from tidegate.signals.tcp import TcpSignal

pytestmark = pytest.mark.lab

PORT = 5000
#: A body that looks like a response, a large one, one of unknown length, and failures.
UPSTREAM = """
server {
    listen 5000; listen [::]:5000; keepalive_requests 500; access_log access.log combined;
    location = /fine { return 200 "fine"; }
    location = /trap { return 200 "HTTP/1.1 500 Trap\\r\\n\\r\\nHTTP/1.1 503 Trap\\r\\n\\r\\n"; }
    location = /large { alias LARGE; }
    location = /chunked { gzip on; gzip_min_length 1; gzip_types *; alias LARGE; }
    location = /moved { return 302 /fine; }
    location = /gone { return 404; }
    location = /failed { return 500; }
    location = /busy { return 503; }
}
"""
GATEWAY = """
upstream inventory { server UPSTREAM; keepalive 16; }
server {
    listen 80;
    access_log off;
    location / {
        proxy_pass http://inventory; proxy_http_version 1.1; proxy_set_header Connection "";
        proxy_set_header Accept-Encoding gzip;
        proxy_buffering off; proxy_read_timeout 60s; proxy_next_upstream off;
    }
}
"""
PATHS = ["/fine", "/trap", "/large", "/chunked", "/moved", "/gone", "/failed", "/busy"]


@pytest.fixture
def watch() -> Iterator[HttpWatch]:
    tcp = TcpSignal.start(1024, 16384)
    made = HttpWatch(tcp.bpf.maps, Path(probe().cgroup2 or "/"), 256)
    yield made
    made.close()
    tcp.close()


def counted(watch: HttpWatch) -> Counter[str]:
    assert watch._signal is not None
    found = Counter[str]()
    for record in watch._signal.read(0.0):
        found.update(dict(zip(CLASSES, record.counters[Place.RESPONSES :], strict=False)))
    return +found


@pytest.mark.parametrize(
    ("version", "loss", "requests"),
    [(4, 0, 2400), (6, 0, 2400), (4, 3, 800)],
    ids=["IPv4", "IPv6", "3 % loss"],
)
def test_every_response_is_counted_once(
    lab: Lab, watch: HttpWatch, tmp_path: Path, version: int, loss: int, requests: int
) -> None:
    gateway, inventory, visitors = (
        lab.host(name, n, steady=True) for name, n in (("gateway", 16), ("inventory", 6), ("visitors", 4))
    )
    address = inventory.v4 if version == 4 else inventory.v6
    endpoint = Endpoint(ip_address(address), PORT)
    watch.watch({endpoint: 0.0})
    large = tmp_path / "large"
    large.write_bytes(b"HTTP/1.1 502 Trap\r\n" * 2000)
    tmp_path.chmod(0o755)
    upstream = Nginx(inventory, "inventory", UPSTREAM.replace("LARGE", str(large)))
    Nginx(gateway, "gateway", GATEWAY.replace("UPSTREAM", str(endpoint)))
    for host in (gateway, inventory):
        host.lose(loss)
    answers = Visitors(visitors, gateway.v4, PATHS, 300.0, requests).results()
    log = upstream.directory / "access.log"
    wait_until(lambda: len(log.read_text("utf-8").splitlines()) >= requests, "all requests in the log", 60)
    statuses = Counter(line.split('"')[2].split()[0] for line in log.read_text("utf-8").splitlines())
    assert sum(sum(by.values()) for by in answers.values()) == requests

    found = counted(watch)
    assert found == Counter({f"{status[0]}xx": 0 for status in statuses}) | Counter(
        {name: sum(n for status, n in statuses.items() if status[0] == name[0]) for name in CLASSES}
    )
    told = watch.endpoints.evidence()
    failures = sum(n for status, n in statuses.items() if status >= "500")
    lost = watch.endpoints.losses()
    assert sum(one.evidence is PoolEvidence.RESPONSE for one in told) + lost["pool_events"] == failures
    assert {one.code for one in told} == {500, 503}
    assert watch.endpoints.seen()[endpoint].answered == sum(statuses.values()) - failures
    assert (lost["pool_unread"], lost["pool_rows"], lost["pool_sockets"]) == (0, 0, 0)


#: Keeps two connections, sends a request over one once told so, and prints what becomes of both.
_PATIENT = """
import errno, socket, sys
def connected():
    made = socket.create_connection((sys.argv[1], 5000))
    made.sendall(b"GET /fine HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n")
    assert made.recv(4096).startswith(b"HTTP/1.1 200")
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 400)
    return made
waiting, idle = connected(), connected()
idle.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL):
    idle.setsockopt(socket.IPPROTO_TCP, option, 1)
print("ready", flush=True)
sys.stdin.readline()
waiting.sendall(b"GET /fine HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n")
for kept in (waiting, idle):
    try:
        kept.recv(1)
    except OSError as error:
        print(errno.errorcode[error.errno], flush=True)
"""


def test_a_connection_that_the_kernel_gives_up_speaks_against_it_where_a_request_waits(
    lab: Lab, watch: HttpWatch
) -> None:
    gateway, inventory = lab.host("gateway", 16), lab.host("inventory", 6)
    watch.watch({Endpoint(ip_address(inventory.v4), PORT): 0.0})
    Nginx(inventory, "inventory", UPSTREAM.replace("LARGE", "/dev/null"))
    client = gateway.popen(
        [sys.executable, "-c", _PATIENT, inventory.v4], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert client.stdin is not None
    assert client.stdout is not None
    assert client.stdout.readline() == "ready\n"
    inventory.lose(99.9)
    client.stdin.write("\n")
    client.stdin.flush()
    assert [client.stdout.readline() for _ in range(2)] == ["ETIMEDOUT\n"] * 2
    inventory.lose(0)
    (one,) = watch.endpoints.evidence()
    assert (one.evidence, one.error) == (PoolEvidence.RESET, errno.ETIMEDOUT)
    assert one.age_ns < 30 * 10**9
