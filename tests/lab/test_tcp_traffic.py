# SPDX-License-Identifier: Apache-2.0
"""What connections do, against the lab's count and the kernel's own: bytes, retransmits, resets, lifetimes."""

from __future__ import annotations

import re
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from lab.lab import Host, Lab
from lab.results import Closer, Exchange, Plan, Results, Step, endpoint_text
from tests.lab.agreement import LabMeasurement, measure_until, rows, settled
from tests.lab.pair import ADDRESSES, KINDS, NO_PROBES, PORTS, SEGMENT, SIZES, Pair, pair_of
from tidegate.measurement import Bounds
from tidegate.model.fields import Role
from tidegate.model.snapshot import EndpointRow, View

pytestmark = pytest.mark.lab
SHOP, INVENTORY = "shop.service", "inventory_service.service"
SECONDS = 60
#: What hosts have that run no program while their supervisor is the current task (docs/architecture.md).
UNSEEN = {"tcp_late", "tcp_end_unseen", "tcp_retransmits_unseen", "disk_end_unseen"}


@pytest.fixture
def pair(lab: Lab) -> Pair:
    return pair_of(lab, {})


@pytest.fixture
def quiet(lab: Lab) -> Pair:
    return pair_of(lab, NO_PROBES)


def both(view: View) -> tuple[dict[str, EndpointRow], dict[str, EndpointRow]]:
    """Return the client's and the server's rows by endpoint."""
    return rows(view, SHOP, Role.CLIENT), rows(view, INVENTORY, Role.SERVER)


def kinds(found: dict[str, EndpointRow]) -> dict[str, int]:
    """Return the retransmits of some rows by kind, of those that happened."""
    total: Counter[str] = Counter()
    for row in found.values():
        total.update({kind: n for kind, n in row.retransmits.items() if n})
    return dict(total)


def assert_agrees(what: str, measured: int, truth: int, unseen: int) -> None:
    """Compare exactly; ``unseen`` is how much may be missing with ends of connections that no program saw."""
    assert truth - unseen <= measured <= truth, f"{what}: measured {measured}, counted {truth}, unseen {unseen}"


def assert_bytes_agree(pair: Pair, view: View, counted: Results, unseen: int) -> None:
    """Compare the bytes of both sides, exactly unless so many ends of connections passed unseen."""
    client, server = both(view)
    transferred = pair.upstream.transferred()
    assert (set(client), set(server)) == (
        set(counted.endpoints),
        {f":{port}" for port, t in transferred.items() if t.requests},
    )
    for endpoint, result in counted.endpoints.items():
        each = unseen * result.sent // result.established, unseen * result.received // result.established
        assert_agrees(f"{endpoint} sent", client[endpoint].sent_bytes, result.sent, each[0])
        assert_agrees(f"{endpoint} received", client[endpoint].received_bytes, result.received, each[1])
    for endpoint, row in server.items():
        truth = transferred[int(endpoint[1:])]
        each = unseen * truth.sent // row.established, unseen * truth.received // row.established
        assert_agrees(f"{endpoint} sent", row.sent_bytes, truth.sent, each[0])
        assert_agrees(f"{endpoint} received", row.received_bytes, truth.received, each[1])


def mixed(seed: int) -> Plan:
    """Keep-alive and short connections, small and large, closed by either side, over both families."""
    steps = [
        Step(address, port, 4, request=request, response=response, rounds=rounds, closes=closes, syn_retries=8)
        for address in ADDRESSES
        for port, (request, response, rounds) in zip(PORTS, SIZES, strict=False)
        for closes in ("client", "server")
    ]
    steps += [Step(address, PORTS[6], 40, rounds=1, syn_retries=8) for address in ADDRESSES]
    return Plan(tuple(steps), parallel=40, seed=seed)


@pytest.mark.timeout(4 * SECONDS)
def test_a_minute_of_mixed_traffic_over_a_lossy_path_agrees_exactly(pair: Pair) -> None:
    with LabMeasurement(pair.server.lab, Bounds()) as measurement:
        before = [host.snmp() for host in (pair.client, pair.server)]
        for host in (pair.client, pair.server):
            host.lose(2)
        counted, end, seed = Results(), time.monotonic() + SECONDS, 0
        with ThreadPoolExecutor(1) as thread:
            while time.monotonic() < end:
                seed += 1
                results = thread.submit(pair.shop.begin(mixed(seed)))
                while not results.done():  # a walk meets as many connections at work as it can
                    measurement.measure()
                counted = Results.sum((counted, results.result()))
        pair.settle()  # a socket may still retransmit after its application has closed it
        view = measure_until(measurement, settled)
        after = [host.snmp() for host in (pair.client, pair.server)]
        late, unseen = view.health.losses["tcp_late"], view.health.losses["tcp_end_unseen"]
        assert_bytes_agree(pair, view, counted, unseen)
        for found, begun, ended in zip(both(view), before, after, strict=True):
            grown = {name: ended[name] - begun[name] for name in ended}
            by_kind = kinds(found)
            assert_agrees("retransmits", sum(by_kind.values()), grown["Tcp.RetransSegs"], unseen)
            syns = by_kind.get("syn", 0) + by_kind.get("synack", 0)
            assert_agrees("SYNs", syns, grown["TcpExt.TCPSynRetrans"], unseen)
            assert sum(by_kind.values()) > 1000
            assert syns > 0
        for endpoint, row in both(view)[0].items():
            result = counted.endpoints[endpoint]
            assert (row.connects, row.established) == (result.connects, result.established)
            assert sum(row.closes.values()) == len(result.lifetimes)
            for who, n in closers(result.closed).items():
                assert abs(row.closes[who] - n) <= late + unseen
            assert_agrees(f"{endpoint} lifetimes", row.duration.count, len(result.lifetimes), late + unseen)
            assert row.rtt.count >= result.established
        assert {kind for kind, n in view.health.losses.items() if n} <= UNSEEN


def closers(closed: dict[str, int]) -> dict[str, int]:
    """Turn the generator's words for who closed first into a client's."""
    words = {"client": "local", "server": "remote", "reset": "remote"}
    found: Counter[str] = Counter()
    for who, n in closed.items():
        found[words[who]] += n
    return dict(found)


#: What each way of losing makes the sending side retransmit, by kind (tests/lab/pair.py).
EXPECTED = {
    "syn": {"syn": 1},
    "synack": {"synack": 1},
    "fast, request": {"fast": 1},
    "fast, response": {"fast": 1},
    "timeout": {"probe": 1, "timeout": 10},
    "probe": {"probe": 1},
}


@pytest.fixture(scope="module")
def lossy() -> Iterator[Pair]:
    with Lab("-kinds") as lab:
        yield pair_of(lab, {})


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("name", KINDS)
def test_each_kind_of_retransmission_is_told(lossy: Pair, name: str, address: str) -> None:
    kind, port = KINDS[name], PORTS[list(KINDS).index(name)]
    step = Step(address, port, 1, request=kind.request, response=kind.response, rounds=1)
    with LabMeasurement(lossy.server.lab, Bounds()) as measurement:
        with ExitStack() as losses:
            for loss in kind.lose(lossy, port):
                losses.enter_context(loss)
            lossy.shop.generate(Plan((step,)))
        lossy.settle()
        client, server = both(measurement.measure())
        again, other = (client, server) if kind.sender == "client" else (server, client)
        assert kinds(again) == EXPECTED[name]
        if name != "synack":  # there the client can't tell that its SYN has arrived
            assert kinds(other) == {}
        assert sum(row.retransmit_rate for row in again.values()) > 0


def test_retransmits_that_the_own_host_drops_are_counted_as_the_kernel_does(quiet: Pair) -> None:
    drop = "meta length > 100 numgen random mod 8 == 0 drop"
    rules = f"table inet own {{ chain out {{ type filter hook output priority 0; {drop}; }}; }}"
    with quiet.client.popen(["nft", rules]) as nft:
        assert nft.wait() == 0
    quiet.server.lose(5)  # else nothing would be sent again: what is dropped on its way out counts as not sent
    with LabMeasurement(quiet.server.lab, Bounds()) as measurement:
        before = quiet.client.snmp()
        step = Step("10.0.0.6", 5000, 20, request=40_000, response=10, rounds=3, syn_retries=6, hold=True)
        counted = quiet.shop.generate(Plan((step,)))
        with LabMeasurement(quiet.server.lab, Bounds()) as later:  # which finds them open, and no sign of a SYN
            client, server = both(later.measure())
            assert [(row.endpoint, row.open) for row in client.values()] == [("10.0.0.6:5000", 20)]
            assert [(row.endpoint, row.open) for row in server.values()] == [(":5000", 20)]
        quiet.shop.release()
        quiet.settle()
        view = measure_until(measurement, settled)
        after = quiet.client.snmp()
        assert_bytes_agree(quiet, view, counted, view.health.losses["tcp_end_unseen"])
        assert sum(kinds(both(view)[0]).values()) == after["Tcp.RetransSegs"] - before["Tcp.RetransSegs"] > 0


def test_a_keep_alive_connection_shows_its_bytes_in_each_of_ten_intervals(pair: Pair) -> None:
    with LabMeasurement(pair.server.lab, Bounds()) as measurement:
        pair.shop.generate(Plan((Step("10.0.0.6", 5000, 1, hold=True), Step("fd00::6", 5001, 1, hold=True))))
        seen: Counter[tuple[str, str, str]] = Counter()
        for n in range(1, 11):
            added = pair.shop.exchange(Exchange(1000 * n, 3 * SEGMENT * n, rounds=2))
            view = measurement.measure()
            client, server = both(view)
            for endpoint, result in added.endpoints.items():
                for row, sent, received in (
                    (client[endpoint], result.sent, result.received),
                    (server[":" + endpoint.rpartition(":")[2]], result.received, result.sent),
                ):
                    key = (row.service, row.endpoint)
                    assert row.sent_bytes - seen[*key, "sent"] == sent
                    assert row.received_bytes - seen[*key, "received"] == received
                    seen[*key, "sent"], seen[*key, "received"] = row.sent_bytes, row.received_bytes
                    assert row.sent_rate == pytest.approx(sent / view.interval)
                    assert (row.open, row.closes) == (1, {"local": 0, "remote": 0, "timeout": 0})
        pair.shop.release()
        measure_until(measurement, settled)


@pytest.mark.parametrize("address", ADDRESSES)
def test_connections_from_before_are_open_and_not_new(pair: Pair, address: str) -> None:
    pair.shop.generate(Plan((Step(address, 5000, 7, request=500, response=900, rounds=2, hold=True),)))
    endpoint = endpoint_text(address, 5000)
    with LabMeasurement(pair.server.lab, Bounds()) as measurement:
        client, server = both(measurement.measure())
        for row in (client[endpoint], server[":5000"]):
            assert (row.open, row.established, row.connects or 0, row.accepts or 0) == (7, 0, 0, 0)
            assert (row.sent_bytes, row.received_bytes) == (0, 0)
        added = pair.shop.exchange(Exchange(100, 2000, rounds=3)).endpoints[endpoint]
        client, server = both(measurement.measure())
        assert (client[endpoint].sent_bytes, client[endpoint].received_bytes) == (added.sent, added.received)
        assert (server[":5000"].sent_bytes, server[":5000"].received_bytes) == (added.received, added.sent)
        pair.shop.release()
        client, server = both(measure_until(measurement, settled))
        assert (client[endpoint].closes["local"], server[":5000"].closes["remote"]) == (7, 7)
        assert client[endpoint].duration.count == 0  # when they began is not known


def test_lifetimes_are_within_ten_percent_of_the_generators_clock(pair: Pair) -> None:
    pauses = (0.01, 0.03, 0.1, 0.3)
    steps = tuple(
        Step("10.0.0.6", PORTS[n], 25, request=20, response=20, rounds=3, pause=pause)
        for n, pause in enumerate(pauses)
    )
    with LabMeasurement(pair.server.lab, Bounds()) as measurement:
        counted = pair.shop.generate(Plan(steps, parallel=10))
        pair.settle()
        view = measurement.measure()
        client, server = both(view)
        for n in range(len(pauses)):
            truth = sorted(counted.endpoints[f"10.0.0.6:{PORTS[n]}"].lifetimes)
            assert len(truth) == 25
            for row in (client[f"10.0.0.6:{PORTS[n]}"], server[f":{PORTS[n]}"]):
                assert_agrees(row.endpoint, row.duration.count, 25, view.health.losses["tcp_late"])
                assert row.duration.sum == pytest.approx(sum(truth), rel=0.1)
                assert row.duration.p50 == pytest.approx(truth[12], rel=0.1)


@pytest.mark.parametrize("closes", ["client", "server", "reset"])
def test_who_closed_first_and_who_reset(pair: Pair, closes: Closer) -> None:
    with LabMeasurement(pair.server.lab, Bounds()) as measurement:
        before = [host.snmp()["Tcp.OutRsts"] for host in (pair.client, pair.server)]
        step = Step("10.0.0.6", 5000, 30, request=100, response=5000, rounds=2, closes=closes)
        pair.shop.generate(Plan((step,)))
        pair.settle()
        (client,), (server,) = (found.values() for found in both(measurement.measure()))
        after = [host.snmp()["Tcp.OutRsts"] for host in (pair.client, pair.server)]
        first = "local" if closes == "client" else "remote"
        assert (client.closes[first], server.closes["remote" if first == "local" else "local"]) == (30, 30)
        assert (sum(client.closes.values()), sum(server.closes.values())) == (30, 30)
        sent = [b - a for a, b in zip(before, after, strict=True)]
        assert [client.resets_sent, server.resets_sent] == sent == [0, 30 if closes == "reset" else 0]
        assert [client.resets_received, server.resets_received] == [sent[1], 0]


def ss(host: Host) -> Counter[str]:
    """Return the sums that ``ss -ti`` gives for the connected sockets of a host."""
    with host.popen(["ss", "-HtinO", "state", "connected"], stdout=subprocess.PIPE) as process:
        text = process.communicate()[0]
    fields: Counter[str] = Counter()
    for name, value in re.findall(r"\b(bytes_sent|bytes_retrans|bytes_received|segs_out|segs_in):(\d+)", text):
        fields[name] += int(value)
    return fields


def test_numbers_agree_with_ss(pair: Pair) -> None:
    with LabMeasurement(pair.server.lab, Bounds()) as measurement:
        pair.server.lose(2)
        held = tuple(
            Step(address, 5000, 5, request=3000, response=90_000, rounds=3, hold=True) for address in ADDRESSES
        )
        pair.shop.generate(Plan(held))
        pair.server.lose(0)
        measure_until(measurement, lambda view: sum(row.open for row in view.endpoints) == 20)
        hosts = (pair.client, pair.server)
        before: list[Counter[str]] = []
        while (truths := [ss(host) for host in hosts]) != before:  # acknowledgements may be on their way
            before, view = truths, measurement.measure()
        for truth, found in zip(truths, both(view), strict=True):
            assert sum(row.sent_bytes for row in found.values()) == truth["bytes_sent"] - truth["bytes_retrans"]
            assert sum(row.received_bytes for row in found.values()) == truth["bytes_received"]
            assert sum(row.segments_sent for row in found.values()) == truth["segs_out"]
            assert sum(row.segments_received for row in found.values()) == truth["segs_in"]
        pair.shop.release()
