# SPDX-License-Identifier: Apache-2.0
"""A real nginx behind the limiter, under a flood of 1,000,000 spoofed sources: who belongs is served all along."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

from lab.flood import Flooding, Kind, into
from lab.flooded import FLOOD, GOOD, PORT, RATE_LIMIT, FloodedGateway
from lab.gateway import Visitors
from lab.lab import Lab
from tests.lab.remains import wait_until
from tests.lab.test_ratelimit import GatewayAgent, nothing_left
from tidegate.config.limits import Bucket, Limits, RateLimit
from tidegate.kernel.layouts import RatelimitReason, RatelimitVerdict
from tidegate.kernel.limiter import SHARED, LimiterMaps
from tidegate.kernel.objects import BpfObject
from tidegate.kernel.pins import PINS
from tidegate.ratelimit.modes import LEASE
from tidegate.ratelimit.policy import compiled

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("nothing_left")]
assert nothing_left  # a fixture

POLICY = f"mode: enforce, {RATE_LIMIT}"
SOURCES = 1_000_000
ANSWERED = "204"


def test_a_flood_arrives_as_it_was_sent(lab: Lab) -> None:
    """By the counts of the kernel that gets it, which checks all checksums."""
    host, sent = lab.host("gateway", 16), 100_000
    subprocess.run(
        ["nsenter", f"--net=/run/netns/{host.namespace}", "ethtool", "-K", "eth0", "gro", "on"], check=True
    )
    for kind in Kind:
        plan = into(host, 80, kind=kind, count=sent, sources=60_000, cpu=0)
        assert Flooding(host, plan).results().packets == sent
    counted = host.snmp()
    assert counted["Tcp.InSegs"] == 2 * sent
    assert counted["Udp.NoPorts"] == sent
    assert [counted[name] for name in ("Tcp.InErrs", "Tcp.InCsumErrors", "Udp.InErrors", "Ip.InHdrErrors")] == [
        0
    ] * 4


def answers(visitors: list[Visitors]) -> list[dict[str, int]]:
    """Return each one's answers by status, the friend's last."""
    return [visitor.results()["/"] for visitor in visitors]


def counted() -> Counter[tuple[str, str]]:
    """Return packets by verdict and reason from the pinned map, which needs no agent."""
    (pin,) = PINS.glob("*/ratelimit_counts")
    dump = subprocess.run(["bpftool", "--json", "map", "dump", "pinned", pin], capture_output=True, check=True)
    found = Counter[tuple[str, str]]()
    for element in json.loads(dump.stdout):
        key = int.from_bytes(bytes(int(byte, 16) for byte in element["key"]), "little")
        verdict, reason = divmod(key, int(RatelimitReason.COUNT))
        packets = sum(
            int.from_bytes(bytes(int(byte, 16) for byte in value["value"][:8]), "little")
            for value in element["values"]
        )
        if packets:
            found[RatelimitVerdict(verdict).name.lower(), RatelimitReason(reason).name.lower()] = packets
    return found


class Balance(NamedTuple):
    """Packets of the gateway's interface so far: judged, received there, lost before, and sent by other hosts."""

    judged: int
    received: int
    lost: int
    bridged: int


def balance(gateway: FloodedGateway) -> Balance:
    """Return the balance of a moment in which nothing is under way."""
    read = [Balance(0, 0, 0, 0)]

    def is_quiet() -> bool:
        read.append(Balance(counted().total(), gateway.received(), gateway.lost(), gateway.bridged()))
        return read[-1] == read[-2]

    wait_until(is_quiet, "no packet under way")
    return read[-1]


def served(count: int) -> list[dict[str, int]]:
    """Return what :func:`answers` is when every request of everyone has been answered."""
    return [{ANSWERED: count}] * (GOOD + 1)


def test_who_belongs_is_served_in_a_flood_also_when_the_agent_is_killed(lab: Lab, tmp_path: Path) -> None:
    gateway = FloodedGateway(lab)
    with GatewayAgent(gateway.host, tmp_path, POLICY) as agent:
        wait_until(lambda: bool(answers(gateway.visit(1))) and counted()["pass", "within"] > 0, "port 80 judged")
        assert answers(gateway.visit(2)) == served(2)
        before = balance(gateway)
        with gateway.flooded(FLOOD) as flooding:
            assert answers(gateway.visit(40)) == served(40)
            agent.process.send_signal(signal.SIGKILL)
            killed, dropped = time.monotonic(), counted()["drop", "syn"]
            assert answers(gateway.visit(20)) == served(20)
            assert counted()["drop", "syn"] > dropped
            assert not counted()["would_drop", "syn"]
            wait_until(lambda: counted()["would_drop", "syn"] > 0, "monitoring", 2 * LEASE)
            assert LEASE - 2 <= time.monotonic() - killed <= LEASE + 2
            # Nothing is dropped any more, and the flood has the listener's queue.
            answered = sum(found.get(ANSWERED, 0) for found in answers(gateway.visit(6, patience=0.9)))
            assert answered < 6 * (GOOD + 1) / 2
        sent = flooding.results().packets
        assert sent > SOURCES
        judged, received, lost, bridged = (b - a for a, b in zip(before, balance(gateway), strict=True))
        assert judged == received
        assert judged + lost == sent + bridged
    # Tidegate locks nobody out: with the kernel's own means all are served.
    gateway.cookies(on=True)
    with gateway.flooded(FLOOD / 5):
        assert answers(gateway.visit(4)) == served(4)
    gateway.cookies(on=False)

    with GatewayAgent(gateway.host, tmp_path, POLICY), gateway.flooded(FLOOD):
        dropped = counted()["drop", "syn"]
        assert answers(gateway.visit(12)) == served(12)
        assert counted()["drop", "syn"] > dropped


def test_a_thousand_swaps_in_a_flood_leave_no_packet_unjudged(lab: Lab, tmp_path: Path) -> None:
    gateway = FloodedGateway(lab)
    limits = [Limits(syn=Bucket(rate=rate, burst=10), packets=Bucket(rate=2000, burst=10)) for rate in (5, 6)]
    made = [compiled(RateLimit(default=of), {PORT, other}, ()) for of, other in zip(limits, (81, 82), strict=True)]
    with GatewayAgent(gateway.host, tmp_path, f"{POLICY}, persist: true") as agent:
        wait_until(lambda: bool(answers(gateway.visit(1))) and counted()["pass", "within"] > 0, "port 80 judged")
        agent.process.kill()
        agent.process.wait()
    with BpfObject.named("ratelimit") as bpf:
        bpf.resize({"ratelimit_syns": 4096, "ratelimit_sources": 4096, "ratelimit_sketch": 4 * 1024})
        assert bpf.pin_maps(PINS, SHARED) == []
        maps = LimiterMaps(bpf.load(), 1)
        before, reasons = balance(gateway), counted()
        with gateway.flooded(FLOOD) as flooding:
            for n in range(1000):
                maps.put_in_force(made[n % 2].policies, made[n % 2].ports, anew=True)
        sent = flooding.results().packets
        judged, received, lost, bridged = (b - a for a, b in zip(before, balance(gateway), strict=True))
        assert judged == received
        assert judged + lost == sent + bridged
        found = counted() - reasons
        assert set(found) <= {("pass", "within"), ("drop", "syn"), ("pass", "protocol"), ("pass", "not_ip")}
        assert sent - lost <= found["pass", "within"] + found["drop", "syn"] <= sent
