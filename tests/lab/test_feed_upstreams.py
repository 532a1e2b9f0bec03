# SPDX-License-Identifier: Apache-2.0
"""What real proxies say of their endpoints: as many events as their upstreams have given answers."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lab.envoy import Cluster, Envoy
from lab.gateway import CURRENT_NGINX, NGINX, Nginx, Visitors
from lab.haproxy import Haproxy
from lab.lab import Host, Lab
from lab.upstream import Behaviour
from tests.lab.remains import wait_until
from tests.lab.test_feed_nginx import PORT, UDP, feed_in
from tidegate.errors import DriverError
from tidegate.feeds import envoy, haproxy
from tidegate.feeds.datagrams import TRIES, Datagrams
from tidegate.feeds.polled import Statistics
from tidegate.feeds.upstreams import Failed, Try, events_of
from tidegate.model.breaker import Event, Kind

pytestmark = pytest.mark.lab

REFUSED, HELD, RESETTING = 5001, 5002, 5003
OTHERS = {REFUSED: Behaviour.REFUSE, HELD: Behaviour.HOLD, RESETTING: Behaviour.RESET}
STATUS = {"/ok": 200, "/bad": 503, "/five": 500, "/gateway": 502, "/none": 404}
#: Plain and by TLS; each writes what it has answered, at which address.
UPSTREAM = """\
log_format answered '$server_addr:$server_port $status';
server {
    listen 5000;
    listen [::]:5000;
    listen 5443 ssl;
    listen [::]:5443 ssl;
    ssl_certificate server.pem;
    ssl_certificate_key server.key;
    keepalive_requests 100000;
    access_log access.log answered;
    location /ok { return 200 "fine"; }
    location /bad { return 503; }
    location /five { return 500; }
    location /gateway { return 502; }
    location /none { return 404; }
    location /close { return 444; }
}
"""
#: By TLS to one, plainly to another; what is tried again, redirected, refused. All is written to a file as well.
GATEWAY = """\
log_format tidegate_upstream '$upstream_addr $upstream_status $upstream_connect_time $upstream_header_time';
upstream tls {{ server 10.0.0.6:5443 max_fails=0; server [fd00::6]:5443 max_fails=0; keepalive 8; }}
upstream plain {{ server 10.0.0.6:5000 max_fails=0; keepalive 8; }}
upstream again {{ server 10.0.0.6:5443 max_fails=0; server [fd00::6]:5443 backup max_fails=0; }}
upstream half {{ server 10.0.0.6:{refused} max_fails=0; server 10.0.0.6:5443 backup max_fails=0; }}
upstream nobody {{ server 10.0.0.6:{refused} fail_timeout=1h; server [fd00::6]:{refused} fail_timeout=1h; }}
server {{
    listen 80;
    access_log tries.log tidegate_upstream;
    access_log syslog:server={server},nohostname tidegate_upstream;
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_next_upstream off;
    proxy_read_timeout 200ms;
    location /tls/ {{ proxy_pass https://tls/; }}
    location /plain/ {{ proxy_pass http://plain/; }}
    location /again/ {{ proxy_pass https://again/; proxy_next_upstream http_503; }}
    location /half/ {{ proxy_pass https://half/; proxy_next_upstream error; }}
    location /nobody {{ proxy_pass http://nobody; proxy_next_upstream error; }}
    location /redirected/ {{ proxy_pass https://tls/; proxy_intercept_errors on; error_page 503 = @other; }}
    location @other {{ rewrite ^ /ok break; proxy_pass http://plain; }}
    location /held {{ proxy_pass http://10.0.0.6:{held}; }}
    location /resetting {{ proxy_pass http://10.0.0.6:{resetting}; }}
    location /own {{ return 503; }}
}}
"""
HAPROXY = """\
defaults
  mode http
  retries 0
  timeout connect 1s
  timeout client 10s
  timeout server 200ms
"""
POOLS = {f"{address}:{port}": "inventory" for address in ("10.0.0.6", "[fd00::6]") for port in (5000, 5443, 5999)}


class Inventory(Nginx):
    """The upstream."""

    def __init__(self, host: Host) -> None:
        super().__init__(host, "inventory_service", "")
        argv = (
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=inventory"
        )
        argv += f" -keyout {self.directory}/server.key -out {self.directory}/server.pem"
        subprocess.run(argv.split(), check=True, capture_output=True)
        self.write(UPSTREAM)
        self.reload()

    def answered(self) -> Counter[tuple[str, int]]:
        """Return how often each address has answered by which status."""
        lines = (self.directory / "access.log").read_text(encoding="ascii").splitlines()
        pairs = [line.split() for line in lines]
        return Counter((f"[{a[:-5]}]:{a[-4:]}" if a.count(":") > 1 else a, int(s)) for a, s in pairs if s != "444")


@pytest.fixture
def gateway(lab: Lab) -> Host:
    return lab.host("gateway", 16, {"net.unix.max_dgram_qlen": "512"})


@pytest.fixture
def inventory(lab: Lab) -> Inventory:
    host = lab.host("inventory", 6)
    host.service("others").upstream(OTHERS)
    return Inventory(host)


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory that others than root can reach."""
    made = Path(f"/run/tidegate-test-{os.getpid()}")
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def visit(
    host: Host, paths: list[str], each: int, port: int = 80, rate: float = 500.0
) -> Counter[tuple[str, str]]:
    """Call each path so often; return how often it was answered by which status."""
    found = Visitors(host, f"127.0.0.1:{port}", paths, rate, each * len(paths)).results()
    return Counter({(path, status): n for path, by in found.items() for status, n in by.items()})


def told(events: Iterable[Event]) -> Counter[tuple[str, int]]:
    """Return how many answers the events tell of, by endpoint and status."""
    found: Counter[tuple[str, int]] = Counter()
    for event in events:
        assert (event.pool, event.kind) == ("inventory", Kind.HTTP)
        assert event.code is not None
        found[event.endpoint, event.code] += event.count
    return found


def in_sums(answered: Counter[tuple[str, int]]) -> Counter[tuple[str, int]]:
    """Return the same with what a proxy tells in sums."""
    found: Counter[tuple[str, int]] = Counter()
    for (endpoint, status), count in answered.items():
        found[endpoint, 500 if status >= 500 else 200] += count
    return found


# nginx.


def read(feed: Datagrams[tuple[Try, ...]], visiting: Callable[[], Counter[tuple[str, str]]]) -> list[Try]:
    """Read a feed while somebody visits, until there is a line for each call; return the tries."""
    lines: list[tuple[Try, ...]] = []

    def turn(calls: int) -> bool:
        lines.extend(feed.read())
        return sum(feed.counts().values()) >= calls

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(visiting)
        while not running.done():
            select.select([feed], [], [], 0.01)
            turn(0)
        calls = running.result().total()
    wait_until(lambda: turn(calls), f"{calls} lines read")
    return [one for line in lines for one in line]


@pytest.mark.parametrize("program", [NGINX, CURRENT_NGINX], ids=["debian", "current"])
@pytest.mark.parametrize("by", ["unix", "udp"])
def test_nginx_tells_of_each_answer_once(
    gateway: Host, inventory: Inventory, directory: Path, by: str, program: str
) -> None:
    path = directory / "upstreams.sock"
    server = f"unix:{path}" if by == "unix" else UDP
    with feed_in(gateway, path if by == "unix" else ("127.0.0.1", PORT), TRIES) as feed:
        servers = GATEWAY.format(server=server, refused=REFUSED, held=HELD, resetting=RESETTING)
        nginx = Nginx(gateway, "gateway", servers, program)
        several = ["/again/ok", "/again/bad", "/half/ok", "/half/bad", "/redirected/bad", "/redirected/ok"]
        none = ["/nobody", "/held", "/resetting", "/own", "/tls/close", "/plain/close"]
        paths = [f"/{name}{path}" for name in ("tls", "plain") for path in STATUS] + several + none
        each = 20
        tries = read(feed, lambda: visit(gateway, paths, each))
        events = [event for one in tries for event in events_of(one, "inventory")]

        answered = inventory.answered()
        assert told(events) == answered
        # By the generator's count: each path once, and what was asked twice.
        by_status = Counter(status for (_, status), n in answered.items() for _ in range(n))
        assert by_status[503] == each * (2 + 2 + 1 + 1)
        assert by_status[500] == by_status[502] == by_status[404] == each * 2
        assert by_status[200] == each * (2 + 1 + 1 + 1 + 1)
        assert Counter(one.failed for one in tries) == {
            None: len(events),
            Failed.NOT_CONNECTED: 2 + 2 * each,  # of nobody, until both were out, and of half
            Failed.NOT_ASKED: each - 1,
            Failed.TIMED_OUT: each,
            Failed.BROKEN: 3 * each,
        }
        assert {one.endpoint for one in tries if one.failed is Failed.NOT_ASKED} == {"nobody"}
        assert {one.endpoint for one in tries if one.failed is Failed.TIMED_OUT} == {f"10.0.0.6:{HELD}"}
        timed_out = [event for one in tries for event in events_of(one, "inventory", timeouts=True)]
        assert Counter(event.kind for event in timed_out) == {Kind.HTTP: len(events), Kind.HTTP_TIMEOUT: each}

        counts = feed.counts()
        written = (nginx.directory / "tries.log").read_text(encoding="ascii").splitlines()
        assert len(written) == len(paths) * each
        assert counts == {
            "events": len(written) - each, "no_upstream": each, "malformed": 0, "truncated": 0,
        }  # fmt: skip
        assert any(" : " in line for line in written)
        assert (feed.dropped(), feed.full()) == ((None, 0) if by == "unix" else (0, None))


# HAProxy and Envoy, by their statistics.


def sampled(proxy: Haproxy) -> haproxy.Sample:
    try:
        found = haproxy.parse(proxy.ask("show stat -1 4 -1"))
    except OSError as error:
        raise DriverError(f"HAProxy: {error}", away=True) from error
    assert found is not None
    return found


def listening(servers: dict[int, str]) -> str:
    """Return a config of HAProxy's with a port for each server."""
    parts = [f"listen p{port}\n  bind 127.0.0.1:{port}\n  server one {at}\n" for port, at in servers.items()]
    return HAPROXY + "".join(parts)


def test_haproxy_tells_of_each_answer_once(gateway: Host, inventory: Inventory) -> None:
    tls = "ssl verify none"
    servers = {9000: "10.0.0.6:5000", 9001: f"10.0.0.6:5443 {tls}", 9002: f"[fd00::6]:5443 {tls}"}
    servers |= {9003: f"10.0.0.6:{REFUSED}", 9004: f"10.0.0.6:{HELD}", 9005: f"10.0.0.6:{RESETTING}"}
    proxy = Haproxy(gateway, "haproxy", listening(servers))
    events: list[Event] = []
    statistics = Statistics(
        "haproxy",
        lambda: sampled(proxy),
        lambda before, after: haproxy.difference(before, after, POOLS),
        events.extend,
        period=0.05,
    )
    first = sampled(proxy)
    wait_until(lambda: statistics.counts()["samples"] > 0, "a sample")
    calls = sum((visit(gateway, [*STATUS, "/close"], 20, port) for port in (9000, 9001, 9002)), Counter())
    failed = sum((visit(gateway, ["/"], 10, port) for port in (9003, 9004, 9005)), Counter())
    wait_until(lambda: told(events) == in_sums(inventory.answered()), "all told")
    told_of = told(events)
    assert told_of.total() == 3 * 20 * len(STATUS)
    assert told_of["10.0.0.6:5443", 500] == told_of["[fd00::6]:5443", 500] == told_of["10.0.0.6:5000", 500] == 60
    # What HAProxy has made itself is no event, though its clients can't tell.
    assert sum(n for (path, _), n in calls.items() if path == "/close") == calls["/close", "502"] == 60
    assert failed == {("/", "503"): 10, ("/", "504"): 10, ("/", "502"): 10}
    last = sampled(proxy)
    assert haproxy.changes(first, last)[f"10.0.0.6:{REFUSED}"] == (0, 0, 10, False)
    assert haproxy.changes(first, last)[f"10.0.0.6:{HELD}"] == (0, 0, 10, False)
    assert haproxy.changes(first, last)[f"10.0.0.6:{RESETTING}"].unanswered >= 10
    assert sum(last.passed.values()) == 0

    # Started again, it counts from 0; what was asked meanwhile is not lost.
    proxy.kill()
    wait_until(lambda: statistics.error != "", "HAProxy is away")
    proxy.start()
    visit(gateway, ["/bad"], 7, 9001)
    told_of["10.0.0.6:5443", 500] += 7
    wait_until(lambda: told(events) == told_of, "all told")
    statistics.stop()
    assert told_of == in_sums(inventory.answered())
    counts = statistics.counts()
    assert counts["failed"] > 0
    assert counts["too_late"] == 0


def test_haproxy_says_who_has_no_address_and_what_is_none(gateway: Host) -> None:
    proxy = Haproxy(gateway, "haproxy", listening({9000: "10.0.0.6:5000", 9001: "unix@/nowhere"}))
    found = haproxy.parse(proxy.ask("show stat -1 7 -1"))
    assert found is not None
    assert [server.endpoint for server in found.servers.values()] == ["10.0.0.6:5000"]
    assert (found.passed[haproxy.Passed.OTHER], found.passed[haproxy.Passed.NO_ADDRESS]) == (4, 1)
    assert haproxy.parse(proxy.ask("show stat nosuch 4 -1")) is None
    assert haproxy.parse(proxy.ask("nosuch")) is None


def test_envoy_tells_of_each_answer_once(gateway: Host, inventory: Inventory) -> None:
    never = {"consecutive_5xx": 1_000_000}
    both = [("10.0.0.6", 5000), ("fd00::6", 5000)]
    strict = {"consecutive_5xx": 3, "max_ejection_percent": 50, "base_ejection_time": "600s"}
    proxy = Envoy(
        gateway,
        [
            Cluster("inventory", 9000, both, never),
            Cluster("refused", 9001, [("10.0.0.6", REFUSED)], never),
            Cluster("held", 9002, [("10.0.0.6", HELD)], never, 0.2),
            Cluster("resetting", 9003, [("10.0.0.6", RESETTING)], never),
            Cluster("strict", 9004, both, strict),
        ],
    )

    def sample(cluster: str | None = "inventory") -> envoy.Sample:
        found = envoy.parse(proxy.ask("clusters?format=json"), cluster)
        assert found is not None
        assert sum(found.passed.values()) == 0
        return found

    events: list[Event] = []
    statistics = Statistics(
        "envoy", sample, lambda before, after: envoy.difference(before, after, POOLS), events.extend, period=0.05
    )
    first = sample(None)
    wait_until(lambda: statistics.counts()["samples"] > 0, "a sample")
    calls = visit(gateway, list(STATUS), 20, 9000)
    wait_until(lambda: told(events) == in_sums(inventory.answered()), "all told")
    statistics.stop()
    assert calls == Counter({(path, str(status)): 20 for path, status in STATUS.items()})
    assert Counter(code for (_, code), n in told(events).items() for _ in range(n)) == {200: 40, 500: 60}
    assert {event.endpoint for event in events} == {"10.0.0.6:5000", "[fd00::6]:5000"}

    # What Envoy counts of tries without an answer.
    for port in (9001, 9002, 9003):
        visit(gateway, ["/"], 10, port)
    changes = envoy.changes(first, sample(None))
    assert changes[f"10.0.0.6:{REFUSED}"] == (0, 0, 10, False)
    assert changes[f"10.0.0.6:{HELD}"] == (0, 0, 10, False)
    assert changes[f"10.0.0.6:{RESETTING}"] == (0, 10, 0, False)  # as if it had answered by a 5xx

    assert envoy.ejected(sample(None)) == frozenset()
    visit(gateway, ["/bad"], 10, 9004)
    assert len(envoy.ejected(sample("strict"))) == 1
    assert envoy.ejected(sample("inventory")) == frozenset()
