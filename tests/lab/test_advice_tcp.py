# SPDX-License-Identifier: Apache-2.0
"""Each finding that connections alone tell: what causes it, and a near miss that must not."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lab.gateway import UPSTREAM, Nginx
from lab.lab import Host, Lab, Service
from lab.results import EndpointResult, Exchange, Plan, Step, endpoint_text
from lab.upstream import Behaviour
from tests.lab.advised import AdvisedLab
from tidegate.measurement import Bounds
from tidegate.model.finding import Finding
from tidegate.model.limits import Advice, Residency

pytestmark = pytest.mark.lab
SERVE, HOLD, REFUSE, UNREACHABLE, DENIED, RESET, HANG = 5000, 5001, 5002, 5003, 5004, 5005, 5006
PORTS = {
    SERVE: Behaviour.SERVE,
    HOLD: Behaviour.HOLD,
    REFUSE: Behaviour.REFUSE,
    UNREACHABLE: Behaviour.UNREACHABLE,
    DENIED: Behaviour.DENIED,
    RESET: Behaviour.RESET,
    HANG: Behaviour.HANG,
}


def pair(lab: Lab, sysctls: dict[str, str] | None = None) -> tuple[Service, Service]:
    """Return an upstream with all kinds of ports, and a client."""
    upstream = lab.host("inventory", 6).service("inventory_service")
    upstream.upstream(PORTS)
    return upstream, lab.host("gateway", 16, sysctls).service("shop")


def once(count: int, port: int = SERVE, **options: object) -> Step:
    """So many connections with one exchange each."""
    return Step("10.0.0.6", port, count, request=100, response=300, rounds=1, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("address", "port", "reason"),
    [
        ("10.0.0.6", REFUSE, "refused"),
        ("10.0.0.6", UNREACHABLE, "unreachable"),
        ("fd00::6", DENIED, "denied"),
        ("10.0.0.6", RESET, "reset"),
    ],
)
def test_connect_failures_are_found_by_their_reason(lab: Lab, address: str, port: int, reason: str) -> None:
    _, shop = pair(lab)
    endpoint = endpoint_text(address, port)
    with AdvisedLab(lab) as advised:
        counted = shop.generate(Plan((Step(address, port, 9, speak=port == RESET), once(9))))
        view = advised.until(lambda v: bool(v.findings), "found")
        finding = advised.one(view, "connect_failures")
    assert finding.endpoints == (endpoint,)
    assert finding.evidence[reason] == counted.endpoints[endpoint].outcomes[reason] == 9
    assert finding.evidence["failed_share"] == 1.0
    assert finding.severity == "critical"


def test_few_failures_and_a_small_share_of_them_are_none(lab: Lab) -> None:
    upstream, shop = pair(lab)
    with AdvisedLab(lab) as advised:
        shop.generate(Plan((Step("10.0.0.6", REFUSE, 4),)))
        shop.generate(Plan((Step("10.0.0.6", SERVE, 150, request=100, response=300, rounds=2),)))
        assert advised.findings(advised.after(1)) == []
        upstream.close()
        counted = shop.generate(Plan((Step("10.0.0.6", SERVE, 6),))).endpoints[f"10.0.0.6:{SERVE}"]
        assert counted.outcomes == {"refused": 6}
        assert advised.findings(advised.after(2)) == []


def test_an_upstream_that_drops_syns_hangs(lab: Lab) -> None:
    _, shop = pair(lab)
    with AdvisedLab(lab) as advised:
        shop.generate(Plan((Step("10.0.0.6", HANG, 12, give_up=0.3), once(5))))
        finding = advised.one(advised.until(lambda v: bool(v.findings), "found"), "hanging_upstream")
    assert finding.endpoints == (f"10.0.0.6:{HANG}",)
    assert (finding.evidence["aborted"], finding.evidence["connects"]) == (12, 12)


#: Asks, waits for an answer, and gives up.
ASK = """
import socket, sys
for n in range(int(sys.argv[2])):
    with socket.create_connection(("10.0.0.6", int(sys.argv[1]))) as connection:
        connection.settimeout(0.6)
        connection.sendall(b"?" * 100)
        try:
            connection.recv(100)
        except TimeoutError:
            pass
"""


def test_an_upstream_that_accepts_and_is_silent_hangs(lab: Lab) -> None:
    _, shop = pair(lab)
    with AdvisedLab(lab) as advised:
        shop.popen([sys.executable, "-c", ASK, str(HOLD), "7"]).wait(30)
        finding = advised.one(advised.until(lambda v: bool(v.findings), "found"), "hanging_upstream")
    assert finding.endpoints == (f"10.0.0.6:{HOLD}",)
    assert (finding.evidence["ended"], finding.evidence["answered"]) == (7, 0)
    assert 0.6 <= float(finding.evidence["waited_seconds"]) < 5


def test_an_upstream_that_is_slow_but_answers_does_not_hang(lab: Lab) -> None:
    _, shop = pair(lab)
    with AdvisedLab(lab) as advised:
        step = Step("10.0.0.6", SERVE, 9, request=100, response=100, rounds=2, pause=0.7)
        shop.generate(Plan((step,)))
        assert advised.findings(advised.after(2)) == []


def uploads(*addresses: str) -> Plan:
    steps = (
        Step(address, SERVE, 10, request=300_000, response=100, rounds=4, syn_retries=6) for address in addresses
    )
    return Plan(tuple(steps), parallel=20)


def lossy_pair(lab: Lab, *numbers: int) -> tuple[list[Host], Service]:
    hosts = [lab.host(f"media{n}", n, steady=True) for n in numbers]
    for host in hosts:
        host.service(f"media{host.number}").upstream(PORTS)
    return hosts, lab.host("gateway", 16, steady=True).service("shop")


def test_loss_to_one_endpoint_is_told_from_the_others(lab: Lab) -> None:
    (lossy, healthy), shop = lossy_pair(lab, 8, 9)
    lossy.lose(3)
    with AdvisedLab(lab) as advised:
        shop.generate(uploads(lossy.v4, healthy.v4))
        finding = advised.one(advised.until(lambda v: bool(v.findings), "found"), "retransmits")
    assert finding.endpoints == (f"{lossy.v4}:{SERVE}",)
    assert finding.confidence == "high"
    assert float(finding.evidence["ratio"]) > 5 * float(finding.evidence["ratio_elsewhere"])


def test_loss_to_all_endpoints_is_the_nodes(lab: Lab) -> None:
    hosts, shop = lossy_pair(lab, 8, 9)
    for host in hosts:
        host.lose(3)
    with AdvisedLab(lab) as advised:
        shop.generate(uploads(*(host.v4 for host in hosts)))
        finding = advised.one(advised.until(lambda v: bool(v.findings), "found"), "retransmits")
    assert finding.subject == "node"
    assert finding.evidence["endpoints_compared"] == 2


def test_a_path_without_loss_is_none(lab: Lab) -> None:
    hosts, shop = lossy_pair(lab, 8, 9)
    hosts[0].lose(0.05)
    with AdvisedLab(lab) as advised:
        shop.generate(uploads(*(host.v4 for host in hosts)))
        assert advised.findings(advised.after(2)) == []


def test_a_pool_that_fills_is_no_missing_keepalive(lab: Lab) -> None:
    _, shop = pair(lab)
    with AdvisedLab(lab) as advised:
        shop.generate(Plan((once(80, hold=True),)))
        assert advised.findings(advised.measure()) == []
        shop.exchange(Exchange(request=100, response=300))
        assert advised.findings(advised.measure()) == []


def churned(shop: Service, closes: str) -> EndpointResult:
    """Connect for one exchange each, until there is no port left if it is the client that keeps TIME_WAIT."""
    return shop.generate(Plan((once(150, closes=closes),), parallel=4)).endpoints[f"10.0.0.6:{SERVE}"]


def counts(finding: Finding) -> tuple[object, object]:
    return finding.evidence.get("used"), finding.evidence.get("limit")


SMALL = {"net.ipv4.ip_local_port_range": "40000 40099"}


def test_ports_that_run_out_are_one_finding_with_keepalive_as_the_first_remedy(lab: Lab) -> None:
    _, shop = pair(lab, SMALL)
    with AdvisedLab(lab) as advised:
        counted = churned(shop, "client")
        assert counted.outcomes == {"ok": 100, "ports_exhausted": 50}
        finding = advised.one(advised.until(lambda v: bool(v.findings), "found"), "ports_running_out")
        assert finding.subject.endswith(f"-> 10.0.0.6:{SERVE}")
        assert finding.evidence["time_left_seconds"] == 0
        assert finding.evidence["failed_connects"] == 50
        # The namespace is visited because connects fail; until then its limit and what waits are not known.
        view = advised.until(lambda v: counts(advised.one(v, "ports_running_out")) == (100, 100), "counted")
        finding = advised.one(view, "ports_running_out")
    assert finding.evidence["time_wait"] == 100
    assert finding.remedies[0].what.startswith("Keep connections open")
    assert [remedy.lines[0] for remedy in finding.remedies[1:]] == [
        "net.ipv4.tcp_tw_reuse = 1",
        "net.ipv4.ip_local_port_range = 1024 65535",
    ]


def test_time_wait_at_the_server_costs_the_client_no_ports(lab: Lab) -> None:
    _, shop = pair(lab, SMALL)
    with AdvisedLab(lab) as advised:
        counted = churned(shop, "server")
        assert counted.outcomes == {"ok": 150}
        view = advised.after(2)
    assert "ports_running_out" not in [id_ for id_, _ in advised.findings(view)]


#: Listens with a queue of a few connections, and accepts as many as it is told on stdin.
SLOW = """
import socket, sys
listener = socket.create_server(("", 5008), backlog=3)
print("ready", flush=True)
for line in sys.stdin:
    for _ in range(int(line)):
        listener.accept()[0].close()
"""


@pytest.mark.parametrize("accepts", [False, True])
def test_an_accept_queue_that_overflows_is_found_at_its_listener_alone(lab: Lab, accepts: bool) -> None:
    upstream, shop = pair(lab)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with AdvisedLab(lab) as advised, upstream.popen([sys.executable, "-c", SLOW], **pipes) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        if accepts:
            process.stdin.write("20\n")
            process.stdin.flush()
        advised.until(lambda v: any(row.endpoint.endswith(":5008") for row in v.listeners or ()), "listening")
        shop.generate(Plan((Step("10.0.0.6", 5008, 20, give_up=0.5, hold=True),), parallel=2 if accepts else 20))
        if accepts:
            assert advised.findings(advised.after(6)) == []
        else:
            found = advised.until(lambda v: "accept_queue_overflow" in [f.id for f in v.findings or ()], "found")
            finding = advised.one(found, "accept_queue_overflow")
            assert (finding.evidence["limit"], finding.evidence["backlog"]) == (3, 4)
            assert int(finding.evidence["drops"]) >= 16
            assert finding.evidence["explains"] == "hanging_upstream"
        process.kill()


#: Serves a page for which it calls another service so many times, over one connection.
FRONTEND = """
import http.client, http.server, sys
far = http.client.HTTPConnection("10.9.0.5:4000")
calls = int(sys.argv[1])

class Page(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        for _ in range(calls):
            far.request("GET", "/")
            far.getresponse().read()
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")
    def log_message(self, *_):
        pass

server = http.server.HTTPServer(("", 8080), Page)
print("ready", flush=True)
server.serve_forever()
"""
VISIT = """
import http.client, sys
connection = http.client.HTTPConnection("10.0.0.16:8080")
for _ in range(int(sys.argv[1])):
    connection.request("GET", "/")
    connection.getresponse().read()
"""


@pytest.mark.parametrize(("calls", "is_much"), [(10, True), (2, False)])
def test_many_calls_to_a_distant_upstream_are_the_sum_of_their_round_trips(
    lab: Lab, calls: int, is_much: bool
) -> None:
    auth, gateway, visitors = lab.host("auth", 5), lab.host("gateway", 16), lab.host("visitors", 4)
    Nginx(auth, "auth_service", UPSTREAM.format(port=4000, name="auth"))
    lab.slow_path(auth, gateway, 0.0125, 0.0125)
    shop, visitor = gateway.service("shop"), visitors.service("visitor")
    with shop.popen([sys.executable, "-c", FRONTEND, str(calls)], stdout=subprocess.PIPE) as frontend:
        assert frontend.stdout is not None
        assert frontend.stdout.readline() == "ready\n"
        places = {"10.9.0.0/24": "far away", "10.0.0.0/8": "here"}
        with AdvisedLab(lab, locations=places) as advised:
            visitor.popen([sys.executable, "-c", VISIT, "12"]).wait(60)
            if not is_much:
                assert advised.findings(advised.after(2)) == []
            else:
                view = advised.until(lambda v: bool(v.findings), "found")
                finding = advised.one(view, "distant_upstream")
                assert finding.subject.endswith("-> far away")
                evidence = finding.evidence
                assert (evidence["calls"], evidence["requests_served"]) == (120, 12)
                assert 0.025 <= float(evidence["rtt_min_seconds"]) < 0.04
                assert 0.25 <= float(evidence["added_seconds_per_request"]) < 0.4
        frontend.kill()


def test_data_that_leaves_the_allowed_places_is_found(lab: Lab) -> None:
    _, shop = pair(lab)
    spare = lab.host("spare", 7).service("inventory_spare")
    spare.upstream(PORTS)
    places = {"10.0.0.0/24": "home", "10.0.0.7/32": "abroad", "fd00::/64": "home"}
    with AdvisedLab(lab, locations=places, residency=Residency(allowed=("home",))) as advised:
        step = Step("fd00::6", SERVE, 5, request=100, response=300, rounds=1)
        shop.generate(Plan((once(5), step)))
        assert advised.findings(advised.after(2)) == []
        counted = shop.generate(Plan((Step("10.0.0.7", SERVE, 3, request=100, response=300, rounds=1),)))
        view = advised.until(lambda v: bool(v.findings), "found")
        finding = advised.one(view, "residency")
    assert finding.endpoints == (f"10.0.0.7:{SERVE}",)
    assert finding.evidence["sent_bytes"] == counted.endpoints[f"10.0.0.7:{SERVE}"].sent == 300
    assert finding.severity == "critical"


@pytest.mark.parametrize(("sockets", "lost"), [(64, True), (1024, False)])
def test_what_the_agent_loses_is_a_finding_of_its_own(lab: Lab, sockets: int, lost: bool) -> None:
    _, shop = pair(lab)
    with AdvisedLab(lab, bounds=Bounds(sockets=sockets), advice=Advice(interval=0.0)) as advised:
        shop.generate(Plan((Step("10.0.0.6", HOLD, 100, hold=True),)))
        view = advised.measure()
        if not lost:
            assert advised.findings(view) == []
        else:
            finding = advised.one(view, "agent_losses")
            assert finding.evidence["tcp_untracked"] == view.health.losses["tcp_untracked"] >= 136
            assert finding.remedies[0].lines == ("signals: {tcp: {max_sockets: 128}}",)
