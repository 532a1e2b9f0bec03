# SPDX-License-Identifier: Apache-2.0
"""From frames to what is judged: each kind, each cut, and frames without sense; as the model says, and counted."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw

from tests.kernel.limiter_model import Model, Policy
from tests.kernel.limiter_rig import UNJUDGED, Rig, per_second, rig
from tidegate.kernel.limiter import counts
from tidegate.ratelimit.keys import mapped

pytestmark = pytest.mark.kernel

PORT, OTHER = 443, 444
V4, V6 = "198.51.100.7", "2001:db8:1:2::7"
#: No SYN passes, one packet with ports does, and all others: the reason tells what a frame was taken for.
POLICIES = {1: Policy({"packets": per_second(1, 3)}), 2: Policy({"syn": per_second(1, 1)})}
PORTS = {(6, PORT): 2, (17, PORT): 2, (6, OTHER): 1}


@pytest.fixture(scope="module")
def loaded() -> Iterator[Rig]:
    with rig() as opened:
        yield opened


@pytest.fixture
def judging(loaded: Rig) -> tuple[Rig, Model]:
    """The program with fresh buckets, and the model of it."""
    loaded.now += 1000 * 10**9
    loaded.put(POLICIES, PORTS)
    model = Model()
    model.policies, model.ports = dict(POLICIES), dict(PORTS)
    return loaded, model


def ethernet(kind: int | None = None) -> Packet:
    # With both addresses, or scapy asks the network for them.
    fields: dict[str, Any] = {} if kind is None else {"type": kind}
    return Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02", **fields)


def syn(port: int = PORT) -> Packet:
    return TCP(sport=40000, dport=port, flags="S")


def v4(**fields: Any) -> Packet:
    return ethernet() / IP(src=V4, dst="192.0.2.1", **fields)


def v6(**fields: Any) -> Packet:
    return ethernet() / IPv6(src=V6, dst="2001:db8::1", **fields)


def header(number: int, size: int = 0) -> Callable[[int], bytes]:
    """Return an extension header of 8 + size * 8 bytes by what follows it."""
    assert number >= 0
    return lambda following: bytes([following, size]) + bytes(6 + size * 8)


def chain(numbers: list[int], last: int, payload: bytes) -> bytes:
    """Return an IPv6 frame with extension headers of these numbers."""
    following = [*numbers, last][1:]
    body = b"".join(header(number)(then) for number, then in zip(numbers, following, strict=True))
    return bytes(v6(nh=[*numbers, last][0]) / Raw(body + payload))


def first_frag(offset: int, more: bool) -> Packet:
    return IPv6ExtHdrFragment(offset=offset, m=more, id=7)


SEGMENT = bytes(syn())
SPLIT = bytes(v4(flags="MF", proto=6) / Raw(SEGMENT[:8]))
#: What a frame is, the frame, and the reason of the third of its kind: by then SYNs are over their limit, other
#: packets to that port have none, and what has no ports is within.
KINDS: dict[str, tuple[Packet | bytes, str]] = {
    "IPv4 SYN": (v4() / syn(), "syn"),
    "IPv4 SYN with ECN bits": (v4() / TCP(dport=PORT, flags="SEC"), "syn"),
    "IPv4 SYN and PSH": (v4() / TCP(dport=PORT, flags="SP"), "syn"),
    "IPv4 SYN-ACK": (v4() / TCP(dport=PORT, flags="SA"), "within"),
    "IPv4 SYN and FIN": (v4() / TCP(dport=PORT, flags="SF"), "within"),
    "IPv4 SYN and RST": (v4() / TCP(dport=PORT, flags="SR"), "within"),
    "IPv4 ACK": (v4() / TCP(dport=PORT, flags="A"), "within"),
    "IPv4 no flags": (v4() / TCP(dport=PORT, flags=""), "within"),
    "IPv4 UDP": (v4() / UDP(dport=PORT) / b"x", "within"),
    "IPv4 UDP, nobody listens": (v4() / UDP(dport=OTHER) / b"x", "port"),
    "IPv4 TCP, nobody listens": (v4() / syn(80), "port"),
    "IPv4 reply to a connection of ours": (v4() / TCP(sport=PORT, dport=50000, flags="SA"), "port"),
    "IPv4 ICMP": (v4() / ICMP(), "protocol"),
    "IPv4 GRE": (v4(proto=47) / Raw(bytes(40)), "protocol"),
    "IPv4 with an option": (v4(options=[IPOption_NOP()] * 4) / syn(), "syn"),
    "IPv4 with all options": (v4(options=[IPOption_NOP()] * 40) / syn(), "syn"),
    "IPv4 header shorter than can be": (v4(ihl=4) / syn(), "malformed"),
    "IPv4 header of length 0": (v4(ihl=0) / syn(), "malformed"),
    "IPv4 header longer than the frame": (v4(ihl=15) / syn(), "malformed"),
    "IPv4 header longer than the frame, total too": (v4(ihl=15, len=60) / syn(), "truncated"),
    "IPv4 of another version": (v4(version=5) / syn(), "malformed"),
    "IPv4 of version 6": (v4(version=6) / syn(), "malformed"),
    "IPv4 total less than the header": (v4(len=19) / syn(), "malformed"),
    "IPv4 total 0": (v4(len=0) / syn(), "malformed"),
    "IPv4 total more than the frame": (v4(len=1500) / syn(), "syn"),
    "IPv4 don't fragment": (v4(flags="DF") / syn(), "syn"),
    "IPv4 reserved bit": (v4(flags="evil") / syn(), "syn"),
    "IPv4 first fragment": (v4(flags="MF") / syn() / bytes(100), "syn"),
    "IPv4 first fragment without flags": (SPLIT, "syn"),
    "IPv4 first fragment without flags, padded": (SPLIT + bytes(18), "syn"),
    "IPv4 first fragment of UDP": (v4(flags="MF") / UDP(dport=PORT) / bytes(64), "within"),
    "IPv4 later fragment": (v4(flags="MF", frag=1, proto=6) / Raw(SEGMENT), "within"),
    "IPv4 last fragment": (v4(frag=8191, proto=6) / Raw(SEGMENT), "within"),
    "IPv4 later fragment of UDP": (v4(frag=100, proto=17) / Raw(bytes(64)), "within"),
    "IPv4 later fragment of ICMP": (v4(frag=100, proto=1) / Raw(bytes(64)), "protocol"),
    "VLAN": (ethernet() / Dot1Q(vlan=5) / IP(src=V4) / syn(), "syn"),
    "VLAN of priority alone": (ethernet() / Dot1Q(vlan=0, prio=7) / IP(src=V4) / syn(), "syn"),
    "QinQ": (ethernet() / Dot1AD(vlan=5) / Dot1Q(vlan=6) / IP(src=V4) / syn(), "syn"),
    "QinQ of the older kind": (ethernet() / Dot1Q(vlan=5) / Dot1Q(vlan=6) / IPv6(src=V6) / syn(), "syn"),
    "three tags": (ethernet() / Dot1AD(vlan=1) / Dot1Q(vlan=2) / Dot1Q(vlan=3) / IP(src=V4) / syn(), "vlans"),
    "VLAN of ARP": (ethernet() / Dot1Q(vlan=5) / ARP(), "not_ip"),
    "ARP": (ethernet() / ARP(), "not_ip"),
    "an Ethernet length": (ethernet(1500) / Raw(bytes(60)), "not_ip"),
    "MPLS": (ethernet(0x8847) / Raw(bytes(60)), "not_ip"),
    "IPv6 SYN": (v6() / syn(), "syn"),
    "IPv6 UDP": (v6() / UDP(dport=PORT) / b"x", "within"),
    "IPv6 ICMP": (v6() / ICMPv6EchoRequest(), "protocol"),
    "IPv6 without a next header": (v6(nh=59) / Raw(bytes(40)), "protocol"),
    "IPv6 ESP": (v6(nh=50) / Raw(bytes(40)), "protocol"),
    "IPv6 of another version": (v6(version=4) / syn(), "malformed"),
    "IPv6 with hop-by-hop": (v6() / IPv6ExtHdrHopByHop() / syn(), "syn"),
    "IPv6 with routing": (v6() / IPv6ExtHdrRouting(addresses=["2001:db8::2"]) / syn(), "syn"),
    "IPv6 with destination options": (v6() / IPv6ExtHdrDestOpt() / syn(), "syn"),
    "IPv6 with mobility": (chain([135], 6, SEGMENT), "syn"),
    "IPv6 with HIP": (chain([139], 6, SEGMENT), "syn"),
    "IPv6 with shim6": (chain([140], 6, SEGMENT), "syn"),
    "IPv6 with authentication": (bytes(v6(nh=51)) + bytes([6, 4]) + bytes(22) + SEGMENT, "syn"),
    "IPv6 with six": (chain([0, 60, 43, 60, 135, 140], 6, SEGMENT), "syn"),
    "IPv6 with six, then ICMP": (chain([0, 60, 43, 60, 60, 60], 58, bytes(40)), "protocol"),
    "IPv6 with seven": (chain([0, 60, 43, 60, 60, 60, 60], 6, SEGMENT), "within"),
    "IPv6 header longer than the frame": (bytes(v6(nh=60)) + bytes([6, 255]) + bytes(100), "truncated"),
    "IPv6 atomic fragment": (v6() / first_frag(0, more=False) / syn(), "syn"),
    "IPv6 first fragment": (v6() / first_frag(0, more=True) / syn() / bytes(100), "syn"),
    "IPv6 later fragment": (v6() / IPv6ExtHdrFragment(offset=1, m=1, nh=6) / Raw(bytes(64)), "within"),
    "IPv6 last fragment": (v6() / IPv6ExtHdrFragment(offset=8191, nh=17) / Raw(bytes(64)), "within"),
    "IPv6 later fragment of ICMP": (v6() / IPv6ExtHdrFragment(offset=9, nh=58) / Raw(bytes(64)), "protocol"),
    "IPv6 fragment behind options": (v6() / IPv6ExtHdrDestOpt() / first_frag(0, more=True) / syn(), "syn"),
}  # fmt: skip


def framed(packet: Packet | bytes) -> bytes:
    return bytes(packet)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_frame_is_what_it_is_taken_for(judging: tuple[Rig, Model], kind: str) -> None:
    rig, model = judging
    frame, expected = framed(KINDS[kind][0]), KINDS[kind][1]
    before = rig.counted()
    told = [rig.judge(frame) for _ in range(3)]
    assert told == [model.judge(frame, rig.now) for _ in range(3)]
    assert told[2][1] == expected
    now = rig.counted()
    assert {key: now[key] - before.get(key, 0) for key in now if now[key] != before.get(key)} == Counter(told)


@pytest.mark.parametrize(
    "kind",
    [
        "IPv4 with all options",
        "IPv4 first fragment without flags",
        "QinQ of the older kind",
        "IPv4 UDP",
        "IPv6 with authentication",
        "IPv6 with six",
    ],
)
def test_a_frame_that_ends_anywhere_is_counted(judging: tuple[Rig, Model], kind: str) -> None:
    rig, model = judging
    frame, before = framed(KINDS[kind][0]), sum(rig.counted().values())
    cuts = [frame[:size] for size in range(14, len(frame) + 1)]
    told = [rig.judge(cut) for cut in cuts]
    assert told == [model.judge(cut, rig.now) for cut in cuts]
    assert {("pass", "truncated"), ("pass", "within")} <= set(told)
    assert sum(rig.counted().values()) - before == len(cuts)


def test_fuzzed_frames_are_judged_as_the_model_does(judging: tuple[Rig, Model]) -> None:
    rig, model = judging
    rng, seeds = random.Random(20), [framed(frame) for frame, _ in KINDS.values()]
    told, expected = list[tuple[str, str]](), list[tuple[str, str]]()
    before = sum(rig.counted().values())
    for n in range(10_000):
        frame = bytearray(rng.choice(seeds) if n % 10 else rng.randbytes(rng.randint(14, 200)))
        for _ in range(rng.choice((1, 1, 2, 4, 20))):
            # Mostly where the headers are; sometimes a bit, sometimes a byte.
            at = min(int(rng.expovariate(1 / 25)), len(frame) - 1)
            frame[at] = frame[at] ^ 1 << rng.randrange(8) if rng.random() < 0.5 else rng.randrange(256)
        if rng.random() < 0.1:
            del frame[rng.randint(14, len(frame)) :]
        told.append(rig.judge(bytes(frame)))
        expected.append(model.judge(bytes(frame), rig.now))
    assert [n for n in range(10_000) if told[n] != expected[n]] == []
    assert sum(rig.counted().values()) - before == 10_000
    assert {*UNJUDGED, "within", "syn"} <= {reason for _, reason in told}


def test_what_is_noted(judging: tuple[Rig, Model]) -> None:
    rig, _ = judging
    fragments, extensions = rig.noted("fragments"), rig.noted("extensions")
    for kind in ("IPv4 later fragment", "IPv6 last fragment", "IPv6 with seven", "IPv6 with six"):
        rig.judge(framed(KINDS[kind][0]))
    assert (rig.noted("fragments") - fragments, rig.noted("extensions") - extensions) == (2, 1)


def test_a_large_packet_counts_with_its_whole_length(judging: tuple[Rig, Model]) -> None:
    rig, _ = judging
    frame = framed(v4() / UDP(dport=PORT) / bytes(60_000))
    before = counts(rig.bpf)["pass", "within"]
    rig.judge(frame)
    assert counts(rig.bpf)["pass", "within"] == (before.packets + 1, before.bytes + len(frame))


@pytest.mark.parametrize(
    ("network", "is_own"),
    [
        (IP(src=V4, dst="203.0.113.1"), True),
        (IP(src=V4, dst="203.0.113.2"), False),
        (IP(src=V4, dst="203.0.113.255"), True),  # of the interface, as the agent reads it
        (IP(src=V4, dst="255.255.255.255"), True),
        (IP(src=V4, dst="239.1.2.3"), True),
        (IP(src=V4, dst="240.0.0.1"), False),
        (IPv6(src=V6, dst="2001:db8:9::1"), True),
        (IPv6(src=V6, dst="2001:db8:9::2"), False),
        (IPv6(src=V6, dst="ff02::1"), True),
        (IPv6(src=V6, dst="::ffff:203.0.113.1"), True),
        (IP(src=V4, dst="203.0.113.2", frag=100), False),
    ],
    ids=lambda value: value.dst if isinstance(value, Packet) else "",
)
def test_what_a_node_forwards_is_not_judged(judging: tuple[Rig, Model], network: Packet, is_own: bool) -> None:
    opened, _ = judging
    frame = bytes(ethernet() / network / UDP(sport=40000, dport=PORT)).ljust(60, b"\0")
    opened.maps.set_own(None)
    assert opened.judge(frame)[1] not in UNJUDGED
    own = [ip_address(text) for text in ("203.0.113.1", "203.0.113.255", "2001:db8:9::1")]
    opened.maps.set_own(map(mapped, own))
    try:
        assert (opened.judge(frame)[1] != "port") == is_own
        opened.maps.set_own([])
        assert (opened.judge(frame)[1] != "port") == (network.dst in ("255.255.255.255", "239.1.2.3", "ff02::1"))
    finally:
        opened.maps.set_own(None)
