# SPDX-License-Identifier: Apache-2.0
"""A real nginx that refuses clients and says so: as many events as its own logs and the clients' answers have."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest
from pyroute2 import netns

from lab.gateway import Nginx, Visitors
from lab.lab import Host, Lab
from tests.lab.remains import wait_until
from tidegate.feeds.datagrams import REFUSALS, Datagrams, Lines
from tidegate.model.feed import Event, Kind
from tidegate.ratelimit.bans import Bans, Parameters, Threshold, prefix_of

pytestmark = pytest.mark.lab
T = TypeVar("T")
PORT = 5140
UDP = f"127.0.0.1:{PORT}"

#: The reference policy, and the refusals of other kinds. All is written to files as well.
SERVERS = """\
limit_req_zone $binary_remote_addr zone=one:1m rate=10r/s;
limit_req_zone $binary_remote_addr zone=two:1m rate=10r/s;
limit_req_zone $binary_remote_addr zone=dry:1m rate=10r/s;
limit_conn_zone $server_port zone=three:1m;
log_format tidegate '$realip_remote_addr $remote_addr $status';
error_log error.log info;
error_log syslog:server={server} warn;
set_real_ip_from {proxy};
real_ip_header X-Forwarded-For;
server {{
    listen 80;
    listen [::]:80;
    access_log access.log combined;
    access_log syslog:server={server},tag=shop_1 {format};
    location = /fine {{ return 200; }}
    location = /limited {{ limit_req zone=one burst=20 nodelay; try_files /none =204; }}
    location = /many {{ limit_req zone=two burst=20 nodelay; limit_req_status 429; try_files /none =204; }}
    location = /dry {{ limit_req zone=dry; limit_req_dry_run on; try_files /none =204; }}
    location = /connections {{ limit_conn three 1; proxy_pass http://127.0.0.1/inner; }}
    location = /inner {{ limit_conn three 1; try_files /none =204; }}
    location = /unauthorized {{ return 401; }}
    location = /forbidden {{ deny all; }}
}}
"""


@pytest.fixture
def gateway(lab: Lab) -> Host:
    return lab.host("gateway", 16, {"net.unix.max_dgram_qlen": "512"})


@pytest.fixture
def visitors(lab: Lab) -> Host:
    return lab.host("visitors", 4)


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory that others than root can reach."""
    made = Path(f"/run/tidegate-test-{os.getpid()}")
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


@contextlib.contextmanager
def feed_in(host: Host, listen: Path | tuple[str, int], lines: Lines[T]) -> Iterator[Datagrams[T]]:
    """Listen in a host's namespace, whose bound on queues is the one that counts."""
    netns.pushns(host.namespace)
    try:
        feed = Datagrams(listen, lines)
    finally:
        netns.popns()
    try:
        yield feed
    finally:
        feed.close()


def call(host: Host, base: str, paths: list[str], count: int, rate: float = 400.0) -> Counter[tuple[str, str]]:
    """Call paths in turn; return how often each was answered by which status."""
    found = Visitors(host, base, paths, rate, count).results()
    return Counter({(path, status): n for path, by in found.items() for status, n in by.items()})


class Reading:
    """Reads a feed, as the agent does, while visitors come and until all has arrived."""

    def __init__(self, feed: Datagrams[Event]) -> None:
        self.feed, self.events = feed, list[Event]()

    def turn(self) -> None:
        self.events += self.feed.read()

    def during(self, visit: Callable[[], Counter[tuple[str, str]]]) -> Counter[tuple[str, str]]:
        """Read while somebody visits; return the answers."""
        with ThreadPoolExecutor(1) as pool:
            visiting = pool.submit(visit)
            while not visiting.done():
                select.select([self.feed], [], [], 0.01)
                self.turn()
            return visiting.result()

    def until(self, datagrams: int) -> Counter[Kind]:
        def done() -> bool:
            self.turn()
            return sum(self.feed.counts().values()) >= datagrams

        wait_until(done, f"{datagrams} datagrams read")
        self.turn()
        assert sum(self.feed.counts().values()) == datagrams
        return Counter(event.kind for event in self.events)


def refusals(nginx: Nginx, what: str) -> int:
    log = (nginx.directory / "error.log").read_text(encoding="utf-8")
    return sum(what in line for line in log.splitlines())


def written(nginx: Nginx, requests: int) -> int:
    """Return how many lines nginx has written that it was to send too, once all requests are among them."""

    def lines(name: str) -> list[str]:
        return (nginx.directory / name).read_text(encoding="utf-8").splitlines()

    wait_until(lambda: len(lines("access.log")) == requests, f"{requests} requests in the access log")
    return sum("[warn]" in line or "[error]" in line for line in lines("error.log")) + requests


@pytest.mark.parametrize("by", ["unix", "udp"])
@pytest.mark.parametrize("log_format", ["combined", "tidegate"])
def test_events_are_the_lines_that_nginx_has_written(
    gateway: Host, visitors: Host, directory: Path, by: str, log_format: str
) -> None:
    path = directory / "nginx.sock"
    server = f"unix:{path}" if by == "unix" else UDP
    with feed_in(gateway, path if by == "unix" else ("127.0.0.1", PORT), REFUSALS) as feed:
        servers = SERVERS.format(server=server, format=log_format, proxy="192.0.2.1")
        nginx, reading = Nginx(gateway, "gateway", servers), Reading(feed)
        paths = ["/limited", "/many", "/dry", "/unauthorized", "/forbidden", "/connections", "/fine"]
        answers = reading.during(lambda: call(visitors, gateway.v4, paths, 280))
        answers += reading.during(lambda: call(visitors, f"[{gateway.v6}]", paths, 280))
        found = reading.until(written(nginx, 560 + 80))  # with the inner requests

        limited = refusals(nginx, "limiting requests, excess") + refusals(nginx, "limiting connections by")
        assert found[Kind.LIMITED] == limited
        assert limited == sum(
            answers[path, status]
            for path, status in (("/limited", "503"), ("/many", "429"), ("/connections", "503"))
        )
        assert answers["/limited", "503"] > 10
        assert found[Kind.TOO_MANY] == answers["/many", "429"] > 10
        assert found[Kind.UNAUTHORIZED] == answers["/unauthorized", "401"] + answers["/forbidden", "403"] == 160
        assert refusals(nginx, "limiting connections by") == 80  # of the gateway's own inner requests
        by_address = Counter(event.address.compressed for event in reading.events)
        assert set(by_address) == {visitors.v4, visitors.v6, "127.0.0.1"}
        assert by_address["127.0.0.1"] == 80
        assert feed.counts()["dry_run"] == refusals(nginx, "limiting requests, dry run") > 10
        assert feed.counts()["malformed"] == feed.counts()["truncated"] == feed.counts()["behind_proxy"] == 0
        assert (feed.dropped(), feed.full()) == ((None, 0) if by == "unix" else (0, None))


def test_a_storm_leads_to_one_ban_and_a_visitor_to_none(gateway: Host, lab: Lab, directory: Path) -> None:
    stormy, visitor = lab.host("stormy", 4), lab.host("visitor", 5)
    path = directory / "nginx.sock"
    with feed_in(gateway, path, REFUSALS) as feed:
        nginx = Nginx(
            gateway, "gateway", SERVERS.format(server=f"unix:{path}", format="tidegate", proxy="192.0.2.1")
        )
        reading = Reading(feed)
        reading.during(lambda: call(stormy, gateway.v4, ["/unauthorized"], 100))
        reading.during(lambda: call(visitor, gateway.v4, ["/unauthorized", "/fine", "/fine"], 30))
        assert reading.until(written(nginx, 130))[Kind.UNAUTHORIZED] == 110
    engine = Bans(Parameters({Kind.UNAUTHORIZED: Threshold(20, 60.0)}), lambda _: False)
    decided = [ban for ban in map(engine.observe, reading.events) if ban]
    assert [(str(ban.prefix), ban.count) for ban in decided] == [(f"{stormy.v4}/32", 20)]
    assert engine.counts()["while_banned"] == 80
    assert decided[0].prefix == prefix_of(reading.events[0].address)


def test_the_addresses_behind_a_balancer_are_no_events(gateway: Host, visitors: Host) -> None:
    """The connection is the balancer's: a ban of whom it speaks for would never match a packet."""
    with feed_in(gateway, ("127.0.0.1", PORT), REFUSALS) as feed:
        nginx = Nginx(gateway, "gateway", SERVERS.format(server=UDP, format="tidegate", proxy=visitors.v4))
        code = (
            "import http.client, sys\n"
            "for n in range(10):\n"
            "    c = http.client.HTTPConnection(sys.argv[1]); c.request('GET', '/unauthorized', headers="
            "{'X-Forwarded-For': f'203.0.113.{n}'} if n % 2 else {})\n"
            "    assert c.getresponse().status == 401; c.close()\n"
        )
        asking = visitors.popen([sys.executable, "-c", code, gateway.v4])
        assert asking.wait(30) == 0
        assert Reading(feed).until(written(nginx, 10))[Kind.UNAUTHORIZED] == 5
        assert feed.counts()["behind_proxy"] == 5


def test_workers_of_debians_user_reach_the_socket_and_a_new_one(
    gateway: Host, visitors: Host, directory: Path
) -> None:
    """nginx finds the socket of an agent that was started anew, after the one line that tells it."""
    path = directory / "nginx.sock"
    with feed_in(gateway, path, REFUSALS) as feed:
        nginx = Nginx(
            gateway, "gateway", SERVERS.format(server=f"unix:{path}", format="tidegate", proxy="192.0.2.1")
        )
        config = nginx.directory / "nginx.conf"
        config.write_text(config.read_text(encoding="utf-8").replace("user root", "user www-data"), "utf-8")
        nginx.reload()
        call(visitors, gateway.v4, ["/unauthorized"], 20)
        owners = subprocess.run(["ps", "-C", "nginx", "-o", "user="], check=True, capture_output=True, text=True)
        assert "www-data" in owners.stdout.split()
        assert Reading(feed).until(20) == {Kind.UNAUTHORIZED: 20}
    with feed_in(gateway, path, REFUSALS) as feed:
        call(visitors, gateway.v4, ["/unauthorized"], 20)
        # The first line finds the old socket; nginx says so, which is sent too, and connects anew.
        assert Reading(feed).until(20) == {Kind.UNAUTHORIZED: 19}
        assert feed.counts()["other"] == 1
