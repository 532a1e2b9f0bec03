# SPDX-License-Identifier: Apache-2.0
"""The limiter's program by its maps, with injected time: rates, lists, bans, modes and sets that are swapped."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from tidegate.config.limits import Bucket, ByteBucket, Limits, RateLimit
from tidegate.kernel.layouts import (
    RATELIMIT_SIMULATION,
    RatelimitMode,
    RatelimitReason,
    RatelimitSimulation,
    RatelimitVerdict,
)
from tidegate.kernel.limiter import LimiterMaps, counts
from tidegate.kernel.objects import BpfObject
from tidegate.ratelimit.keys import ban_key
from tidegate.ratelimit.lists import divides, keys_of
from tidegate.ratelimit.policy import compiled

pytestmark = pytest.mark.kernel

_ZERO = bytes(4)
SECOND = 10**9
#: Small tables, as the kernel fills them.
_SIZES = {"ratelimit_syns": 4096, "ratelimit_sources": 4096, "ratelimit_sketch": 4 * 1024}


class Rig:
    """The program under test, at a time of the test's choice."""

    def __init__(self, bpf: BpfObject) -> None:
        self.bpf, self.maps = bpf, LimiterMaps(bpf, 1)
        self.now = 1000 * SECOND

    def policy(self, limits: Limits, *, anew: bool = True, ports: dict[str, Limits] | None = None) -> None:
        made = compiled(RateLimit(default=limits, ports=ports or {}), range(1, 1024), {53})
        self.maps.put_in_force(made.policies, made.ports, anew=anew)

    def judge(self, packet: Packet) -> tuple[str, str]:
        table = self.bpf.maps["ratelimit_simulation"]
        table[_ZERO] = RATELIMIT_SIMULATION.pack(self.now, 0, 0)
        result = self.bpf.programs["ratelimit"].test_run(bytes(packet).ljust(60, b"\0"))
        found = RatelimitSimulation._make(RATELIMIT_SIMULATION.unpack(table[_ZERO]))
        verdict = RatelimitVerdict(found.verdict)
        assert result.retval == (1 if verdict is RatelimitVerdict.DROP else 2)  # XDP_DROP, XDP_PASS
        return verdict.name.lower(), RatelimitReason(found.reason).name.lower()


@pytest.fixture
def rig() -> Iterator[Rig]:
    with BpfObject.named("ratelimit_simulation") as bpf:
        bpf.resize(_SIZES)
        bpf.load()
        rig = Rig(bpf)
        rig.maps.set_mode(RatelimitMode.ENFORCE, 0)
        yield rig


def syn(source: str = "198.51.100.7", port: int = 443) -> Packet:
    return Ether() / IP(src=source, dst="192.0.2.1") / TCP(sport=40000, dport=port, flags="S")


def data(source: str = "198.51.100.7", port: int = 443, size: int = 100) -> Packet:
    return Ether() / IP(src=source, dst="192.0.2.1") / TCP(sport=40000, dport=port, flags="PA") / bytes(size)


NGINX = Limits(syn=Bucket(rate=10, burst=20))


def test_a_burst_as_nginx_lets_it_pass(rig: Rig) -> None:
    rig.policy(NGINX)
    verdicts = [rig.judge(syn()) for _ in range(30)]
    assert verdicts == [("pass", "within")] * 21 + [("drop", "syn")] * 9
    rig.now += SECOND // 10  # one more each tenth of a second, whatever was refused meanwhile
    assert [rig.judge(syn())[0] for _ in range(2)] == ["pass", "drop"]
    assert rig.judge(syn("198.51.100.8")) == ("pass", "within")


def test_packets_and_bytes_are_limited_and_what_is_refused_takes_nothing(rig: Rig) -> None:
    rig.policy(Limits(packets=Bucket(rate=10, burst=4), bytes=ByteBucket(rate=1000, burst=65536)))
    assert [rig.judge(data())[1] for _ in range(6)] == ["within"] * 5 + ["packets"]
    rig.now += 100 * SECOND
    big = [rig.judge(data(size=1400)) for _ in range(3)]
    assert big == [("pass", "within")] * 3
    (entry,) = [source for _, source in rig.maps.sources()]
    assert (entry.packets, entry.refused) == (9, 1)


def test_only_ports_that_listen_are_judged_each_by_its_own_policy(rig: Rig) -> None:
    rig.policy(NGINX, ports={"80": Limits(syn=Bucket(rate=1, burst=0))})
    assert rig.judge(syn(port=8443)) == ("pass", "port")
    assert [rig.judge(syn(port=80))[1] for _ in range(2)] == ["within", "syn"]
    assert rig.judge(syn(port=443)) == ("pass", "within")
    assert rig.judge(Ether() / IP(src="198.51.100.7") / UDP(dport=53)) == ("pass", "within")
    assert rig.judge(Ether() / IP(src="198.51.100.7") / UDP(dport=54)) == ("pass", "port")


def test_lists_come_before_bans_and_bans_end(rig: Rig) -> None:
    rig.policy(NGINX)
    allowed, denied = {*keys_of("192.0.2.0/24")}, {*keys_of("192.0.2.0/25"), *keys_of("203.0.113.0/24")}
    assert rig.judge(syn("203.0.113.5")) == ("pass", "within")
    rig.maps.set_lists(allowed, denied, divides=divides(frozenset(allowed | denied)))
    assert rig.judge(syn("192.0.2.9")) == ("pass", "allowed")
    assert rig.judge(syn("203.0.113.5")) == ("drop", "denied")
    rig.maps.ban(ban_key(ip_address("198.51.100.7")), rig.now + SECOND)
    assert rig.judge(syn()) == ("drop", "banned")
    rig.now += SECOND
    assert rig.judge(syn()) == ("pass", "within")
    rig.maps.ban(ban_key(ip_address("198.51.100.7")), 0)
    assert rig.judge(syn()) == ("drop", "banned")
    assert rig.maps.bans()[ban_key(ip_address("198.51.100.7"))].packets == 1
    assert rig.maps.unban(ban_key(ip_address("198.51.100.7")))
    assert not rig.maps.unban(ban_key(ip_address("198.51.100.7")))
    rig.maps.set_lists((), (), divides=False)
    assert [rig.judge(syn(source)) for source in ("198.51.100.7", "203.0.113.5")] == [("pass", "within")] * 2


def test_a_lease_that_is_over_and_monitoring_drop_nothing(rig: Rig) -> None:
    rig.policy(Limits(syn=Bucket(rate=1, burst=0)))
    rig.judge(syn())
    rig.maps.set_mode(RatelimitMode.ENFORCE, rig.now + 1)
    assert rig.judge(syn()) == ("drop", "syn")
    rig.now += 1
    assert rig.judge(syn()) == ("would_drop", "syn")
    rig.maps.set_mode(RatelimitMode.MONITOR, 0)
    assert rig.judge(syn()) == ("would_drop", "syn")
    assert counts(rig.bpf)["would_drop", "syn"].packets == 2
    rig.maps.set_mode(RatelimitMode.OFF, 0)
    before = counts(rig.bpf)
    assert rig.judge(syn()) == ("pass", "not_ip")  # nothing is said of it
    assert counts(rig.bpf) == before


def test_another_policy_begins_with_fresh_buckets_and_other_ports_do_not(rig: Rig) -> None:
    one = Limits(syn=Bucket(rate=1, burst=0))
    rig.policy(one)
    rig.judge(syn())
    rig.policy(one, anew=False)
    assert rig.judge(syn()) == ("drop", "syn")
    for _ in range(300):  # more than there are generations
        rig.policy(one)
        assert [rig.judge(syn())[0] for _ in range(2)] == ["pass", "drop"]


def test_a_thousand_swaps_under_load_leave_no_packet_unjudged() -> None:
    policies = [Limits(packets=Bucket(rate=rate, burst=10**6)) for rate in (10**6, 2 * 10**6)]
    made = [
        compiled(RateLimit(default=limits), {443, other}, ())
        for limits, other in zip(policies, (80, 81), strict=True)
    ]
    with BpfObject.named("ratelimit") as bpf:
        bpf.resize(_SIZES)
        bpf.load()
        maps = LimiterMaps(bpf, 1)
        maps.put_in_force(made[0].policies, made[0].ports, anew=True)
        maps.set_mode(RatelimitMode.ENFORCE, 0)
        frame, sent, stop = bytes(data()), 0, threading.Event()

        def load() -> int:
            runs = 0
            while not stop.is_set():
                bpf.programs["ratelimit"].test_run(frame, repeat=1000)
                runs += 1000
            return runs

        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(load)
            for n in range(1000):
                maps.put_in_force(made[n % 2].policies, made[n % 2].ports, anew=True)
            stop.set()
            sent = running.result()
        found = {key: count.packets for key, count in counts(bpf).items()}
        assert sent > 10_000
        assert sum(found.values()) == sent
        assert set(found) <= {("pass", "within"), ("drop", "packets")}
