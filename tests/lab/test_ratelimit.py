# SPDX-License-Identifier: Apache-2.0
"""The limiter as a user runs it: at the gateway's interface, in each mode, beyond the agent's death."""

from __future__ import annotations

import getpass
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.gateway import Nginx
from lab.lab import Host, Lab, Service
from lab.network import enter
from lab.results import ABORTED, OK, Plan, Step
from lab.upstream import Behaviour
from tests.lab.agent import RunningAgent
from tests.lab.remains import wait_until
from tidegate.kernel.pins import PINS
from tidegate.ratelimit.modes import LEASE

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("nothing_left")]

GATEWAY, PORT = "10.0.0.16", 80
#: Five connects pass, and no more within the test.
POLICY = "interfaces: [eth0], default: {syn: {rate: 1/m, burst: 4}}"
_SCRAPE = "import sys, urllib.request as u; sys.stdout.write(u.urlopen(sys.argv[1], timeout=5).read().decode())"
#: Requests one after the other over one connection, until it is cut off.
_CALLS = """
import http.client, sys
connection = http.client.HTTPConnection(sys.argv[1], 80, timeout=1)
for _ in range(int(sys.argv[2])):
    connection.request("GET", "/")
    answer = connection.getresponse()
    answer.read()
    print(answer.status, flush=True)
"""


class GatewayAgent(RunningAgent):
    """An agent in the gateway's network namespace, where alone its metrics can be had."""

    def __init__(
        self, host: Host, directory: Path, rate_limit: str, interval: str = "100ms", extra: str = ""
    ) -> None:
        self._namespace = host.namespace
        self.audit = directory / "audit.jsonl"
        extra = f"rate_limit: {{{rate_limit}}}\naudit: {{file: {self.audit}}}\n{extra}"
        super().__init__(directory, 19470, interval=interval, extra=extra, under=enter(host.namespace, []))

    def metrics(self, port: int | None = None) -> str:
        url = f"http://127.0.0.1:{port or self.port}/metrics"
        done = subprocess.run(
            enter(self._namespace, [sys.executable, "-c", _SCRAPE, url]),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise OSError(done.stderr)
        return done.stdout

    def ratelimit(self, *argv: str) -> str:
        """Run a command of the limiter; return what it says, on stderr where it fails."""
        done = self.command("ratelimit", *argv)
        return done.stdout if done.returncode == 0 else f"exit {done.returncode}: {done.stderr}"

    def status(self) -> dict[str, Any]:
        """Return what ``ratelimit status --json`` prints."""
        found: dict[str, Any] = json.loads(self.ratelimit("status", "--json"))
        return found

    def audited(self) -> list[tuple[str, str | None, str]]:
        """Return action, subject and by whom of each record of the audit trail."""
        records = [json.loads(line) for line in self.audit.read_text(encoding="utf-8").splitlines()]
        return [(record["action"], record["subject"], record["by"]["name"]) for record in records]

    def counted(self, verdict: str, reason: str) -> int:
        """Return the packets with this verdict and reason at the only interface."""
        (row,) = self.status()["interfaces"]
        by = {(count["verdict"], count["reason"]): count["packets"] for count in row["counts"]}
        return int(by.get((verdict, reason), 0))


@pytest.fixture
def gateway(lab: Lab) -> Host:
    host = lab.host("gateway", 16)
    host.service("gateway").upstream({PORT: Behaviour.ACCEPT})
    return host


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """The pins are gone after the test, also where it has failed."""
    assert not PINS.exists(), f"{PINS} is there already: a limiter runs on this machine"
    yield
    leftovers(remove=True)


def leftovers(*, remove: bool = False) -> list[str]:
    """Return the pins of a limiter, which detaches where the last reference goes."""
    found = sorted(PINS.rglob("*"), reverse=True) if PINS.exists() else []
    if remove and PINS.exists():
        for path in found:
            path.rmdir() if path.is_dir() else path.unlink()
        PINS.rmdir()
    return [str(path) for path in found]


def connects(client: Service, count: int) -> dict[str, int]:
    """Connect one after the other, each with little patience; return the outcomes."""
    plan = Plan((Step(GATEWAY, PORT, count, give_up=0.3, syn_retries=1),), parallel=1)
    return client.generate(plan).of(f"{GATEWAY}:{PORT}").outcomes


def reaches(client: Host) -> bool:
    """Tell whether a host can connect to the gateway."""
    code = "import socket, sys; socket.create_connection((sys.argv[1], 80), timeout=0.5)"
    argv = enter(client.namespace, [sys.executable, "-c", code, GATEWAY])
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


def test_monitor_drops_nothing_and_enforcement_rolls_back(lab: Lab, gateway: Host, tmp_path: Path) -> None:
    client, friend = lab.host("client", 17).service("client"), lab.host("friend", 18).service("friend")
    with GatewayAgent(gateway, tmp_path, POLICY) as agent:
        wait_until(lambda: bool(connects(friend, 1)) and agent.counted("pass", "within") > 0, "port 80 judged")
        assert connects(client, 30) == {OK: 30}
        assert agent.counted("would_drop", "syn") == 25
        wait_until(lambda: agent.audited() == [("threshold", "10.0.0.0/24", "agent")], "it on the record")
        heaviest = json.loads(agent.command("top", "--once", "--json").stdout)["sources"][0]
        assert (heaviest["packets"] >= 30, heaviest["refused"]) == (True, 25)
        assert heaviest["handle"] == json.loads(agent.ratelimit("top", "--json"))[0]["handle"]

        assert "--for" in agent.ratelimit("mode", "enforce")
        assert "load balancer" in agent.ratelimit("mode", "enforce", "--for", "4s")
        assert "10.0.0.18 is allowed" in agent.ratelimit("allow", "10.0.0.18")
        assert "rolls back" in agent.ratelimit("mode", "enforce", "--for", "4s", "--yes")
        assert connects(client, 3) == {ABORTED: 3}
        assert connects(friend, 30) == {OK: 30}
        dropped = agent.counted("drop", "syn")
        assert dropped >= 3
        wait_until(lambda: agent.status()["mode"] == "monitor", "rolled back")
        assert agent.audited()[-1] == ("mode", None, "agent")
        assert connects(client, 3) == {OK: 3}
        assert agent.counted("drop", "syn") == dropped

        agent.ratelimit("mode", "enforce", "--for", "2s", "--yes")
        assert "stays" in agent.ratelimit("mode", "--confirm")
        time.sleep(2.5)  # longer than it would have lasted
        assert agent.status()["mode"] == "enforce"
        metric = 'tidegate_ratelimit_packets_total{interface="eth0",verdict="drop",reason="syn"}'
        assert metric in agent.metrics()
        assert "10.0.0.17" not in agent.metrics()


def test_bans_and_their_end(lab: Lab, gateway: Host, tmp_path: Path) -> None:
    client = lab.host("client", 17).service("client")
    policy = "interfaces: [eth0], mode: enforce, default: {syn: {rate: 1000/s, burst: 1000}}"
    with GatewayAgent(gateway, tmp_path, policy) as agent:
        wait_until(lambda: bool(connects(client, 1)) and agent.counted("pass", "within") > 0, "port 80 judged")
        (heaviest,) = json.loads(agent.ratelimit("top", "--json"))
        assert (heaviest["source"], heaviest["refused"]) == ("10.0.0.0/24", 0)
        assert heaviest["packets"] >= 1
        assert "10.0.0.0/24 is banned" in agent.ratelimit("ban", heaviest["handle"])
        assert connects(client, 2) == {ABORTED: 2}
        assert "not banned any more" in agent.ratelimit("unban", "10.0.0.17")
        assert connects(client, 2) == {OK: 2}
        assert "found none" in agent.ratelimit("unban", "10.0.0.17")
        agent.ratelimit("ban", "10.0.0.17", "--for", "2s")
        assert connects(client, 1) == {ABORTED: 1}
        wait_until(lambda: connects(client, 1) == {OK: 1}, "let in again")
        me = getpass.getuser()
        by_hand = [(action, "10.0.0.0/24", me) for action in ("ban", "unban", "ban")]
        wait_until(lambda: agent.audited() == [*by_hand, ("unban", "10.0.0.0/24", "agent")], "all on the record")
        assert "10.0.0.17" not in agent.audit.read_text(encoding="utf-8")


def test_what_nginx_refuses_again_and_again_is_banned_at_the_card(lab: Lab, tmp_path: Path) -> None:
    """nginx refuses requests within one connection, which no limit of connections or packets would see."""
    host = lab.host("gateway", 16, {"net.unix.max_dgram_qlen": "512"})
    feed = tmp_path / "nginx.sock"
    servers = (
        "limit_req_zone $binary_remote_addr zone=one:1m rate=10r/s; "
        f"error_log syslog:server=unix:{feed},nohostname warn; "
        f"server {{ listen {PORT}; keepalive_requests 1000; "
        "location / { limit_req zone=one burst=20 nodelay; try_files /none =404; } }"
    )
    client, friend = lab.host("client", 17), lab.host("friend", 18)
    policy = (
        "interfaces: [eth0], mode: enforce, default: {packets: {rate: 10000/s, burst: 10000}}, "
        f"feed: {{listen: {feed}, limited: {{count: 10, within: 10s}}, ban: {{duration: 3s}}}}"
    )
    # Ticks are rare: the ban does not wait for one.
    with GatewayAgent(host, tmp_path, policy, interval="4s") as agent:
        nginx = Nginx(host, "gateway", servers)
        wait_until(lambda: reaches(client) and agent.counted("pass", "within") > 0, "port 80 judged")
        over_one = subprocess.run(
            enter(client.namespace, [sys.executable, "-c", _CALLS, GATEWAY, "40"]),
            capture_output=True, text=True, check=False, timeout=30,
        )  # fmt: skip
        statuses = over_one.stdout.split()
        assert statuses.count("503") >= 10, over_one
        wait_until(lambda: not reaches(client), "banned", 2)
        assert reaches(friend)
        wait_until(lambda: reaches(client), "let in again")
        wait_until(lambda: len(agent.audited()) == 2, "both on the record")
        assert agent.audited() == [("ban", "10.0.0.0/24", "agent"), ("unban", "10.0.0.0/24", "agent")]
        feed = agent.status()["feed"]
        assert feed["lines"]["events"] >= statuses.count("503")
        assert (feed["bans"]["bans"], feed["lines"]["malformed"]) == (1, 0)
        assert 'tidegate_ratelimit_feed_bans_total{feed="nginx",result="bans"} 1' in agent.metrics()
        told = agent.command("doctor").stdout
        assert "rate limit (XDP) eth0 ok" in told
        assert "max_dgram_qlen" not in told
        assert nginx.unit


def test_the_endpoints_of_pools_are_never_limited(lab: Lab, gateway: Host, tmp_path: Path) -> None:
    upstream, client = lab.host("upstream", 17).service("upstream"), lab.host("client", 18).service("client")
    pools = 'pools: {shop: {endpoints: ["10.0.0.17:8080"]}}'
    with GatewayAgent(gateway, tmp_path, f"{POLICY}, mode: enforce", extra=pools) as agent:
        wait_until(lambda: connects(client, 1) == {ABORTED: 1}, "limited")
        assert connects(upstream, 20) == {OK: 20}
        assert agent.counted("pass", "allowed") >= 20


@pytest.mark.parametrize(("destinations", "judged"), [("own", 0), ("any", 3)])
def test_a_router_judges_what_is_for_itself(lab: Lab, tmp_path: Path, destinations: str, judged: int) -> None:
    """Connects to another node's port 80 pass through one that listens there too."""
    gateway = lab.host("gateway", 16, {"net.ipv4.ip_forward": "1"})
    gateway.service("gateway").upstream({PORT: Behaviour.ACCEPT})
    client = lab.host("client", 17)
    service = client.service("client")
    subprocess.run(enter(client.namespace, ["ip", "route", "add", "10.9.0.0/24", "via", GATEWAY]), check=True)
    with GatewayAgent(gateway, tmp_path, f"{POLICY}, destinations: {destinations}") as agent:
        wait_until(lambda: reaches(client) and agent.counted("pass", "within") > 0, "port 80 judged")
        agent.ratelimit("allow", "10.0.0.17")
        before = agent.counted("pass", "allowed")
        plan = Plan((Step("10.9.0.1", PORT, 3, give_up=0.2, syn_retries=1),), parallel=1)
        assert service.generate(plan).of(f"10.9.0.1:{PORT}").outcomes.get(OK, 0) == 0
        assert agent.counted("pass", "allowed") - before == judged
        assert connects(service, 1) == {OK: 1}
        assert agent.counted("pass", "allowed") - before > judged


def test_a_killed_agent_judges_on_and_drops_nothing_once_its_lease_is_over(
    lab: Lab, gateway: Host, tmp_path: Path
) -> None:
    client = lab.host("client", 17).service("client")
    with GatewayAgent(gateway, tmp_path, f"{POLICY}, mode: enforce") as agent:
        wait_until(lambda: connects(client, 1) == {ABORTED: 1}, "limited")
        agent.process.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        assert connects(client, 3) == {ABORTED: 3}
        wait_until(lambda: connects(client, 1) == {OK: 1}, "monitoring", 2 * LEASE)
        assert LEASE - 2 <= time.monotonic() - killed <= LEASE + 2
    assert leftovers()

    # The next one goes on with the same buckets and counts.
    with GatewayAgent(gateway, tmp_path, f"{POLICY}, mode: enforce") as agent:
        assert connects(client, 1) == {ABORTED: 1}
        assert agent.counted("drop", "syn") >= 4
        assert agent.counted("would_drop", "syn") >= 1

    # And one without interfaces leaves nothing.
    with GatewayAgent(gateway, tmp_path, "interfaces: []") as agent:
        assert leftovers() == []
        link = subprocess.run(
            enter(gateway.namespace, ["ip", "link", "show", "eth0"]), capture_output=True, text=True, check=True
        )
        assert "xdp" not in link.stdout
        assert "no limiter" in agent.ratelimit("status")
