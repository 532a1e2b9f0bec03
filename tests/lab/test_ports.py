# SPDX-License-Identifier: Apache-2.0
"""Local ports against what the kernel hands out: counts against ss, forecasts against the first EADDRNOTAVAIL."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from bench.reading import held
from lab.lab import ROOT, Host, Lab, Service
from lab.network import enter
from lab.results import Plan, Results, Step
from lab.upstream import Behaviour
from tests.lab.agent import RunningAgent
from tests.lab.remains import wait_until
from tests.lab.test_identity import resident
from tidegate.identity.services import Service as Named
from tidegate.measurement import Bounds, Measurement
from tidegate.model.ports import ListenerRow, Method, NamespaceRow, PortsRow
from tidegate.model.snapshot import View
from tidegate.ports.watch import PortsWatch
from tidegate.signals.ports import PortsSignal
from tidegate.signals.tcp import TcpSignal

pytestmark = pytest.mark.lab
INVENTORY = "10.0.0.6:5000"
RANGE, PORTS = "40000 40399", 400
FOUR = {"net.ipv4.ip_local_port_range": "40000 40003"}


@pytest.fixture
def measurement() -> Iterator[Measurement]:
    with Measurement(Bounds()) as opened:
        yield opened


def inventory(lab: Lab) -> Service:
    service = lab.host("inventory", 6).service("inventory_service")
    service.upstream({5000: Behaviour.SERVE, 5001: Behaviour.SERVE, 5002: Behaviour.ACCEPT})
    return service


def rows_of(view: View, service: Service) -> dict[tuple[str, str], PortsRow]:
    assert view.ports is not None
    return {(row.source, row.endpoint): row for row in view.ports if row.service == service.unit}


def counted_by_ss(host: Host) -> Counter[tuple[str, str]]:
    """Count a host's sockets by local address and remote endpoint, listeners left out."""
    done = subprocess.run(enter(host.namespace, ["ss", "-Htan"]), check=True, capture_output=True, text=True)
    text = re.sub(r"\[::ffff:([0-9.]+)\]", r"\1", done.stdout)
    lines = [line.split() for line in text.splitlines()]
    return Counter(
        (line[3].rpartition(":")[0].strip("[]"), line[4])
        for line in lines
        if line[0] not in ("LISTEN", "SYN-RECV")
    )


def namespaces_of(view: View) -> dict[int, NamespaceRow]:
    return {row.netns: row for row in view.namespaces or ()}


def listeners_of(view: View, service: Service) -> list[ListenerRow]:
    return [row for row in view.listeners or () if row.service == service.unit]


def outcomes(results: Results) -> Counter[str]:
    return sum((Counter(result.outcomes) for result in results.endpoints.values()), Counter())


class Churn(NamedTuple):
    """A client that opens and closes connections at a rate, in a namespace of its own."""

    rate: int
    reuse: str
    service: Service
    process: subprocess.Popen[str]


def churn(lab: Lab, number: int, rate: int, reuse: str, seconds: int) -> Churn:
    sysctls = {"net.ipv4.ip_local_port_range": RANGE, "net.ipv4.tcp_tw_reuse": reuse}
    service = lab.host(f"gateway{number}", number, sysctls).service(f"gateway{number}")
    argv = [sys.executable, "-m", "lab.churn", "10.0.0.6", "5000", str(rate), str(seconds)]
    process = service.popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return Churn(rate, reuse, service, process)


def outcome(client: Churn) -> dict[str, Any]:
    assert client.process.stdout is not None
    assert client.process.stdin is not None
    with client.process.stdin, client.process.stdout as output:
        return dict(json.loads(output.read()))


def test_the_forecast_says_when_connect_will_fail(lab: Lab, measurement: Measurement) -> None:
    """Each at 20, 60 and 200 connections a second, as they come and with tcp_tw_reuse, which prevents it.

    The forecast is the one made five seconds before the first failure, or half-way to it where it comes sooner.
    """
    inventory(lab)
    measurement.measure()
    rates = (20, 60, 200)
    clients = [churn(lab, 20 + n, rate, "0", 30) for n, rate in enumerate(rates)]
    clients += [churn(lab, 30 + n, rate, "1", 25) for n, rate in enumerate(rates)]
    seen: dict[Churn, list[tuple[float, PortsRow]]] = {client: [] for client in clients}
    for client in clients:
        assert client.process.stdin is not None
        client.process.stdin.write("\n")
        client.process.stdin.flush()
    while any(client.process.poll() is None for client in clients):
        time.sleep(0.25)
        at = time.monotonic()
        view = measurement.measure()
        for client in clients:
            found = list(rows_of(view, client.service).values())
            if found and client.process.poll() is None:
                seen[client].append((at, found[0]))
    results = {client: outcome(client) for client in clients}
    wait_until(lambda: all_as_ss_shows(measurement.measure(), clients), "as many ports as ss shows", 20)
    for client, rows in seen.items():
        result = results[client]
        exact = [row for _, row in rows if row.method is Method.SOCKETS]
        assert {(row.source, row.endpoint, row.limit) for row in exact} == {
            (client.service.host.v4, INVENTORY, PORTS)
        }
        if client.reuse == "1":
            assert result["exhausted"] == 0
            assert result["connected"] > PORTS
            assert [row for row in exact if row.will_exhaust] == [], client.rate
            continue
        assert_foretold(rows, result)


def all_as_ss_shows(view: View, clients: list[Churn]) -> bool:
    for client in clients:
        rows = rows_of(view, client.service)
        if {place: row.used for place, row in rows.items()} != counted_by_ss(client.service.host):
            return False
    return True


def assert_foretold(rows: list[tuple[float, PortsRow]], result: dict[str, Any]) -> None:
    failed_at = result["first_failure"]
    assert failed_at is not None
    before = min(5.0, (failed_at - result["began"]) / 2)
    made_at, row = min(rows, key=lambda each: abs(failed_at - before - each[0]))
    assert row.time_to_exhaustion is not None
    for at, each in rows:  # to be read where it fails
        sys.stdout.write(f"{at - failed_at:.2f} {msgspec.json.encode(each).decode()}\n")
    assert row.time_to_exhaustion == pytest.approx(failed_at - made_at, rel=0.2)
    after = [row for at, row in rows if at > failed_at + 0.1]
    assert after
    # A rate that exhaustion limits foretells nothing: it is now.
    assert {row.time_to_exhaustion for row in after} == {0.0}
    assert after[-1].exhausted > 0


def test_ports_used_are_those_that_ss_shows(lab: Lab, measurement: Measurement) -> None:
    """Of two services of one host towards three upstreams: open, half closed, and in TIME_WAIT of either side."""
    upstream = inventory(lab)
    host = lab.host("gateway", 5)
    shop, cart = host.service("shop"), host.service("cart")
    six = "fd00::6"
    shop.generate(
        Plan(
            (
                Step("10.0.0.6", 5000, 17, hold=True),
                Step(six, 5000, 7, hold=True),
                Step("10.0.0.6", 5001, 30, rounds=1),
                Step(six, 5001, 11, rounds=1),
                Step("10.0.0.6", 5002, 40),
                Step("10.0.0.6", 5000, 3, hold=True, mapped=True),
                Step("10.0.0.6", 5000, 1, hold=True, bind=23456),
            )
        )
    )
    cart.generate(Plan((Step("10.0.0.6", 5000, 5, hold=True),)))
    view = measurement.measure()
    found = {**rows_of(view, shop)}
    by_ss = counted_by_ss(host)
    assert by_ss["10.0.0.5", "10.0.0.6:5000"] == 26
    for place, row in found.items():
        assert row.shared == by_ss[place], place
    of_cart = rows_of(view, cart)
    assert {place: row.used for place, row in of_cart.items()} == {("10.0.0.5", INVENTORY): 5}
    assert found["10.0.0.5", INVENTORY].used == 21
    assert {place: row.shared for place, row in (of_cart | found).items()} == dict(by_ss)
    assert view.namespaces is not None
    waiting = subprocess.run(
        enter(upstream.host.namespace, ["ss", "-Htan", "state", "time-wait"]),
        check=True,
        capture_output=True,
        text=True,
    ).stdout.count("\n")
    of_server = next(row for row in view.namespaces if upstream.unit in row.services)
    # TIME_WAIT on the server's side costs no client a port.
    assert of_server.time_wait == waiting
    assert not rows_of(view, upstream)


def test_the_same_ports_serve_different_upstreams(lab: Lab, measurement: Measurement) -> None:
    inventory(lab)
    host = lab.host("gateway", 5, FOUR)
    shop = host.service("shop")
    results = shop.generate(
        Plan((Step("10.0.0.6", 5000, 4, hold=True), Step("10.0.0.6", 5001, 4, hold=True)), parallel=1)
    )
    assert outcomes(results) == {"ok": 8}
    rows = rows_of(measurement.measure(), shop)
    assert {endpoint: (row.used, row.limit) for (_, endpoint), row in rows.items()} == {
        "10.0.0.6:5000": (4, 4),
        "10.0.0.6:5001": (4, 4),
    }
    assert {row.time_to_exhaustion for row in rows.values()} == {0.0}
    assert outcomes(shop.generate(Plan((Step("10.0.0.6", 5000, 3),)))) == {"ports_exhausted": 3}
    row = rows_of(measurement.measure(), shop)["10.0.0.5", INVENTORY]
    assert (row.used, row.exhausted, row.time_to_exhaustion) == (4, 3, 0.0)


def test_reserved_and_bound_ports_are_not_to_be_had(lab: Lab, measurement: Measurement) -> None:
    """Ten ports, of which two are reserved, one is listened on and one was bound before it was connected."""
    inventory(lab)
    host = lab.host(
        "gateway",
        5,
        {"net.ipv4.ip_local_port_range": "40000 40009", "net.ipv4.ip_local_reserved_ports": "40001,40004,50000"},
    )
    shop = host.service("shop")
    shop.upstream({40002: Behaviour.HOLD})
    shop.generate(Plan((Step("10.0.0.6", 5001, 1, hold=True, bind=40003),)))
    shop.generate(Plan((Step("10.0.0.6", 5000, 1, hold=True),)))
    view = measurement.measure()
    row = rows_of(view, shop)["10.0.0.5", INVENTORY]
    assert row.limit == 6
    assert view.namespaces is not None
    namespace = next(each for each in view.namespaces if each.netns == row.netns)
    assert (namespace.range_low, namespace.range_high) == (40000, 40009)
    assert (namespace.reserved, namespace.bound) == (2, 2)
    # The kernel agrees: five more, and then no port.
    results = shop.generate(Plan((Step("10.0.0.6", 5000, 8, hold=True),), parallel=1))
    assert outcomes(results) == {"ok": 5, "ports_exhausted": 3}
    row = rows_of(measurement.measure(), shop)["10.0.0.5", INVENTORY]
    assert (row.used, row.limit, row.exhausted) == (6, 6, 3)


def test_without_entering_a_namespace_closes_tell_what_waits(lab: Lab) -> None:
    inventory(lab)
    host = lab.host("gateway", 5)
    shop = host.service("shop")
    tcp = TcpSignal.start(1024, 1024)
    signal = PortsSignal.start(1024, tcp)
    try:
        watch = PortsWatch(signal, 100, look=dict)
        shop.generate(Plan((Step("10.0.0.6", 5000, 25, rounds=1), Step("10.0.0.6", 5001, 4, hold=True))))
        names = {shop.cgroup.stat().st_ino: "shop"}

        def waiting() -> int:
            """Read, with what waits for the other side's last acknowledgement counted once."""
            records = [record for record in tcp.read() if record.cgroup in names]
            view = watch.read(records, lambda cgroup: Named(names.get(cgroup, "other")), time.monotonic(), 1.0)
            found = {row.endpoint: row for row in view.ports if row.service == "shop"}
            by_ss = {endpoint: count for (_, endpoint), count in counted_by_ss(host).items()}
            used = {endpoint: row.used for endpoint, row in found.items()}
            assert used == by_ss == {INVENTORY: 25, "10.0.0.6:5001": 4}
            assert {row.method for row in found.values()} == {Method.CLOSES}
            return found[INVENTORY].time_wait

        wait_until(lambda: waiting() == 25, "all that was closed in TIME_WAIT", 20)
    finally:
        signal.close()
        tcp.close()


def test_a_hundred_thousand_sockets_take_no_memory_of_the_agent(tmp_path: Path) -> None:
    """Ten times as many sockets to the same upstreams; the first round makes the rows."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    with RunningAgent(tmp_path, port, interval="500ms", signals="tcp: {max_sockets: 131072}") as agent:
        memory = []
        for sockets in (10_000, 10_000, 100_000):
            with held(sockets, range(7001, 7007)) as use:
                use()
                # Half of the ends are clients, each with a port of its own.
                agent.wait_for("all ports", lambda n=sockets: ports_used_on_loopback(agent) >= n * 0.49, 60)
                for _ in range(6):
                    agent.snapshot()
                memory.append(resident(agent.process.pid))
        # 45 bytes for each more: less than any object of Python's.
        assert memory[2] - memory[1] < 4 << 20


def ports_used_on_loopback(agent: RunningAgent) -> float:
    return sum(
        sample.value
        for family in text_string_to_metric_families(agent.metrics())
        for sample in family.samples
        if sample.name == "tidegate_ports_used" and sample.labels["source"].startswith("127.")
    )


def test_a_namespace_that_disappears_is_skipped(lab: Lab, measurement: Measurement) -> None:
    inventory(lab)
    shop = lab.host("gateway", 5).service("shop")
    shop.generate(Plan((Step("10.0.0.6", 5000, 5, hold=True),)))
    gone = lab.host("gone", 9)
    inode = os.stat(f"/run/netns/{gone.namespace}").st_ino
    wait_until(lambda: inode in namespaces_of(measurement.measure()), "known", 20)
    subprocess.run(["ip", "netns", "delete", gone.namespace], check=True)
    wait_until(lambda: inode not in namespaces_of(measurement.measure()), "forgotten", 60)
    assert rows_of(measurement.measure(), shop)["10.0.0.5", INVENTORY].used == 5


def test_the_backlog_of_a_listener_that_does_not_accept(lab: Lab, measurement: Measurement) -> None:
    host = lab.host("slow", 7, {"net.core.somaxconn": "20"})
    slow = host.service("slow")
    program = (
        "import socket,sys; s=socket.socket(); s.bind(('10.0.0.7',6000)); s.listen(100); print(flush=True);"
        "sys.stdin.read()"
    )
    process = slow.popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "\n"
    process.stdout.close()
    shop = lab.host("gateway", 5).service("shop")
    shop.generate(Plan((Step("10.0.0.7", 6000, 12, hold=True),)))
    wait_until(lambda: bool(listeners_of(measurement.measure(), slow)), "listening", 20)
    (row,) = listeners_of(measurement.measure(), slow)
    assert (row.endpoint, row.backlog, row.limit, row.somaxconn) == ("10.0.0.7:6000", 12, 20, 20)
    shop.generate(Plan((Step("10.0.0.7", 6000, 30, give_up=0.1, hold=True),)))
    counted = host.snmp()

    def overflows() -> tuple[int | None, int | None]:
        found = namespaces_of(measurement.measure())[row.netns]
        return found.listen_overflows, found.listen_drops

    assert counted["TcpExt.ListenOverflows"] > 0
    wait_until(
        lambda: overflows() == (counted["TcpExt.ListenOverflows"], counted["TcpExt.ListenDrops"]), "as counted", 20
    )
    (full,) = listeners_of(measurement.measure(), slow)
    assert full.backlog == 21  # one more than the limit: sk_acceptq_is_full()
    assert full.drops > 0
    assert process.stdin is not None
    process.stdin.close()
