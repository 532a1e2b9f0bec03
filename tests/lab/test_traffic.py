# SPDX-License-Identifier: Apache-2.0
"""The lab's traffic: what clients and ports count is the same, and each loss forces what it is meant to force."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from lab.counters import open_sockets, snmp
from lab.lab import Host, Lab
from lab.loss import Segment
from lab.results import Closer, Exchange, Plan, Step, Transfer, endpoint_text
from tests.lab.pair import ADDRESSES, KINDS, NO_PROBES, PORTS, SIZES, Pair, pair_of
from tests.lab.remains import remains, wait_until

pytestmark = pytest.mark.lab


@pytest.fixture
def pair(lab: Lab) -> Pair:
    return pair_of(lab, NO_PROBES)


@pytest.fixture(scope="module")
def lossy() -> Iterator[Pair]:
    with Lab() as lab:
        yield pair_of(lab, {})


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("percent", [0, 3])
def test_clients_and_ports_count_the_same_bytes(pair: Pair, address: str, percent: float) -> None:
    steps = tuple(
        Step(address, port, 5, request=request, response=response, rounds=rounds, syn_retries=6, closes=closes)
        for port, (request, response, rounds) in zip(PORTS, SIZES, strict=False)
        for closes in ("client", "server")
    )
    for host in (pair.server, pair.client):
        host.lose(percent)
    results = pair.shop.generate(Plan(steps, parallel=20))
    pair.settle()
    transferred = pair.upstream.transferred()
    for port, (request, response, rounds) in zip(PORTS, SIZES, strict=False):
        n = 10 * rounds
        result = results.endpoints[endpoint_text(address, port)]
        assert (result.outcomes, result.sent, result.received) == ({"ok": 10}, n * request, n * response)
        assert (result.closed, len(result.lifetimes)) == ({"client": 5, "server": 5}, 10)
        assert transferred[port] == Transfer(n * request, n * response, n)
    assert (pair.server.dropped() > 0) is (pair.client.dropped() > 0) is (percent > 0)
    for host in (pair.server, pair.client):
        counted = host.snmp()
        # Without a loss what is sent again was a probe, or came twice: an acknowledgement was late.
        unneeded = counted["TcpExt.TCPLossProbes"] + counted["TcpExt.TCPDSACKRecv"]
        assert counted["Tcp.RetransSegs"] > 0 if percent else counted["Tcp.RetransSegs"] <= unneeded


def test_loss_by_chance_ends(pair: Pair) -> None:
    pair.server.lose(10)
    plan = Plan((Step("10.0.0.6", 5000, 20, request=50_000, rounds=1, response=9, syn_retries=6),))
    pair.shop.generate(plan)
    pair.settle()
    pair.server.lose(0)
    lost = pair.server.dropped()
    assert lost > 0
    client, _ = pair.grown(lambda: pair.shop.generate(plan))
    assert (client["Tcp.RetransSegs"], pair.server.dropped()) == (0, lost)
    for host in (pair.server, pair.client):
        with host.popen(["nft", "list", "tables"], stdout=subprocess.PIPE) as nft:
            assert nft.communicate()[0] == ""


COUNTERS = (
    "Tcp.RetransSegs",
    *(f"TcpExt.TCP{name}" for name in ("SynRetrans", "FastRetrans", "SlowStartRetrans", "LostRetransmit")),
    *(f"TcpExt.TCP{name}" for name in ("Timeouts", "LossProbes", "LossProbeRecovery")),
)


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("name", KINDS)
def test_each_loss_forces_its_kind_of_retransmission(lossy: Pair, name: str, address: str) -> None:
    kind = KINDS[name]
    port = PORTS[list(KINDS).index(name)]
    step = Step(address, port, 1, request=kind.request, response=kind.response, rounds=1)
    with ExitStack() as losses:
        forced, *_ = [losses.enter_context(loss) for loss in kind.lose(lossy, port)]
        client, server = lossy.grown(lambda: lossy.shop.generate(Plan((step,))))
    again, other = (client, server) if kind.sender == "client" else (server, client)
    counted = {counter.partition(".")[2]: again[counter] for counter in COUNTERS if again[counter]}
    assert (counted, forced.dropped()) == (kind.counts, kind.dropped)
    if name != "synack":  # there the client can't tell that its SYN has arrived
        assert {counter: other[counter] for counter in COUNTERS if other[counter]} == {}


def test_a_path_that_is_cut_for_a_while_makes_one_retransmission_of_each_loss(pair: Pair) -> None:
    pair.shop.generate(Plan((Step("10.0.0.6", 5000, 1, hold=True),)))
    before = pair.client.snmp()
    with pair.server.drop(Segment.DATA, 5000) as cut:
        results = pair.shop.begin(Exchange(1000, 10))
        wait_until(lambda: cut.dropped() >= 3, "cut")
    result = results().endpoints["10.0.0.6:5000"]
    assert (result.sent, result.received) == (1000, 10)
    pair.shop.release()
    pair.settle()
    after = pair.client.snmp()
    assert after["Tcp.RetransSegs"] - before["Tcp.RetransSegs"] == cut.dropped() >= 3
    assert after["TcpExt.TCPTimeouts"] > before["TcpExt.TCPTimeouts"]


@pytest.mark.parametrize("address", ADDRESSES)
def test_held_connections_carry_data_on_command(pair: Pair, address: str) -> None:
    held = pair.shop.generate(
        Plan(
            (
                Step(address, 5000, 3, hold=True),
                Step(address, 5001, 2, request=10, response=5, rounds=2, hold=True),
            )
        )
    )
    first, second = endpoint_text(address, 5000), endpoint_text(address, 5001)
    assert {e: (r.outcomes, r.sent, r.received, r.lifetimes) for e, r in held.endpoints.items()} == {
        first: ({"ok": 3}, 0, 0, []),
        second: ({"ok": 2}, 40, 20, []),
    }
    assert (pair.server.sockets(), pair.client.sockets()) == (5, 5)
    for _ in range(2):
        added = pair.shop.exchange(Exchange(1000, 100_000, rounds=3))
        assert {e: (r.connects, r.sent, r.received, r.closed) for e, r in added.endpoints.items()} == {
            first: (0, 9000, 900_000, {}),
            second: (0, 6000, 600_000, {}),
        }
    assert pair.upstream.transferred()[5000] == Transfer(18_000, 1_800_000, 18)
    assert pair.upstream.transferred()[5001] == Transfer(12_040, 1_200_020, 16)
    assert (pair.server.sockets(), pair.client.sockets()) == (5, 5)
    released = pair.shop.release()
    assert {e: (r.closed, len(r.lifetimes)) for e, r in released.endpoints.items()} == {
        first: ({"client": 3}, 3),
        second: ({"client": 2}, 2),
    }
    pair.settle()


def test_pauses_make_connections_live(pair: Pair) -> None:
    step = Step("10.0.0.6", 5000, 20, request=50, response=70, rounds=4, pause=0.1)
    result = pair.shop.generate(Plan((step,))).endpoints["10.0.0.6:5000"]
    assert (result.sent, result.received, result.closed) == (4000, 5600, {"client": 20})
    assert len(result.lifetimes) == 20
    assert min(result.lifetimes) >= 0.3


@pytest.mark.parametrize("closes", ["client", "server", "reset"])
def test_who_closes_first_is_who_the_kernel_says(pair: Pair, closes: Closer) -> None:
    step = Step("10.0.0.6", 5000, 7, request=100, response=5000, rounds=3, closes=closes)
    held = Step("10.0.0.6", 5001, 4, hold=True)
    ended = []

    def act() -> None:
        results = pair.shop.generate(Plan((step, held)))
        ended.append(results.endpoints["10.0.0.6:5000"])
        exchange = Exchange(100, 5000, 3, closes=closes)
        ended.append(pair.shop.exchange(exchange).endpoints["10.0.0.6:5001"])

    client, server = pair.grown(act)
    answered = 2 if closes == "reset" else 3
    for result, n in zip(ended, (7, 4), strict=True):
        assert result.closed == {closes: n}
        assert (result.sent, result.received) == (n * 300, n * answered * 5000)
    assert ended[0].outcomes == {"reset" if closes == "reset" else "ok": 7}
    assert ended[1].failures() == ({"reset": 4} if closes == "reset" else {})
    assert pair.upstream.transferred()[5000] == Transfer(7 * 300, 7 * answered * 5000, 7 * answered)
    assert (client["Tcp.ActiveOpens"], server["Tcp.PassiveOpens"]) == (11, 11)
    resets = 11 if closes == "reset" else 0
    assert (server["Tcp.OutRsts"], client["Tcp.EstabResets"], sum(pair.upstream.resets().values())) == (
        resets,
    ) * 3
    waiting = {"client": (11, 0), "server": (0, 11), "reset": (0, 0)}[closes]
    assert (time_waits(pair.client), time_waits(pair.server)) == waiting


def time_waits(host: Host) -> int:
    with host.popen(["ss", "-Htan", "state", "time-wait"], stdout=subprocess.PIPE) as ss:
        return len(ss.communicate()[0].splitlines())


@pytest.mark.parametrize("wrong", [{"request": 8}, {"response": -1}, {"rounds": -1}, {"speak": True}])
def test_an_exchange_that_cannot_be_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Step("10.0.0.6", 5000, 1, **{"request": 9, "response": 0, "rounds": 1, **wrong})  # type: ignore[arg-type]


def test_the_kernels_text_is_read() -> None:
    assert snmp("Tcp: A MaxConn\nTcp: 3 -1\nTcpExt: A\nTcpExt: 4\n") == {
        "Tcp.A": 3,
        "Tcp.MaxConn": -1,
        "TcpExt.A": 4,
    }
    listing = "LISTEN 0 1 *:1 *:*\nESTAB 0 0 a b\nTIME-WAIT 0 0 a b\nFIN-WAIT-1 0 0 a b\nSYN-SENT 0 1 a b\n"
    assert open_sockets(listing) == 3


def test_nothing_is_left_of_traffic_and_losses() -> None:
    with Lab() as lab:
        pair = pair_of(lab, {})
        pair.server.lose(3)
        pair.client.drop(Segment.DATA, 5000)
        pair.shop.generate(Plan((Step("10.0.0.6", 5000, 3, hold=True, syn_retries=6),)))
        pair.shop.begin(Exchange(100_000, 100_000, 3))  # never ends, and is ended with the lab
        assert pair.client.sockets() == 3
    assert remains(lab.name) == []
