# SPDX-License-Identifier: Apache-2.0
"""Compiled policies and lists, as the real program judges by them, with a clock of the test's."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from tests.unit.test_ratelimit_policy import rate_limit
from tidegate.config.limits import RateLimit
from tidegate.kernel import layouts
from tidegate.kernel.layouts import RatelimitMode, RatelimitReason, RatelimitVerdict
from tidegate.kernel.objects import BpfObject
from tidegate.ratelimit.lists import allow_list, deny_list, divides
from tidegate.ratelimit.policy import compiled, sizes

pytestmark = pytest.mark.kernel
MS = 1_000_000
DEFAULTS = "max_sources: 1024, sketch_cells: 1024"


class Limiter:
    """The program with a config in force."""

    def __init__(self, bpf: BpfObject, config: RateLimit, tcp: range | list[int], udp: list[int]) -> None:
        self._bpf = bpf
        found = compiled(config, tcp, udp)
        for number in range(64):
            size = layouts.RATELIMIT_POLICY.size
            key = number.to_bytes(4, "little")
            bpf.maps["ratelimit_policies"][key] = found.policies[number * size : (number + 1) * size]
        for entry in range(16384):
            size = layouts.RATELIMIT_PORTS.size
            numbers = found.ports[entry * size : (entry + 1) * size]
            if any(numbers):
                bpf.maps["ratelimit_ports_a"][entry.to_bytes(4, "little")] = numbers
        allowed, denied = allow_list(config), deny_list(config)
        for name, addresses in {"ratelimit_allowed": allowed, "ratelimit_denied": denied}.items():
            addresses.refresh()
            for prefix in addresses.prefixes:
                bpf.maps[name][prefix] = bytes(8)
        state = layouts.RatelimitState(
            mode=RatelimitMode.ENFORCE,
            slot=0,
            generation=1,
            divides=divides(allowed.prefixes | denied.prefixes),
            lists=1,
            lease_ns=0,
            seed=1,
            inserts=1024,
            sketch_mask=config.sketch_cells - 1,
            own_only=0,
            pad=0,
        )
        bpf.maps["ratelimit_state"][bytes(4)] = layouts.RATELIMIT_STATE.pack(*state)

    def judge(self, packet: bytes, now_ns: int) -> tuple[RatelimitVerdict, RatelimitReason]:
        simulation = self._bpf.maps["ratelimit_simulation"]
        simulation[bytes(4)] = layouts.RATELIMIT_SIMULATION.pack(now_ns, 99, 99)
        self._bpf.programs["ratelimit"].test_run(packet)
        found = layouts.RatelimitSimulation._make(layouts.RATELIMIT_SIMULATION.unpack(simulation[bytes(4)]))
        return RatelimitVerdict(found.verdict), RatelimitReason(found.reason)

    def passes(self, packet: bytes, now_ns: int) -> bool:
        return self.judge(packet, now_ns)[0] is RatelimitVerdict.PASS


@pytest.fixture
def bpf() -> Iterator[BpfObject]:
    with BpfObject.named("ratelimit_simulation") as opened:
        opened.resize(sizes(rate_limit(DEFAULTS)))
        yield opened.load()


def packet(source: str, port: int, *, protocol: int = 6, syn: bool = True, size: int = 0) -> bytes:
    """Return a frame to ``port``, at least ``size`` bytes long."""
    address = ip_address(source)
    flags = 0x02 if syn else 0x10
    tcp = struct.pack(">HHIIBBHHH", 40000, port, 1, 0, 5 << 4, flags, 65535, 0, 0)
    udp = struct.pack(">HHHH", 40000, port, 8, 0)
    payload = tcp if protocol == 6 else udp
    if address.version == 4:
        header = struct.pack(
            ">BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 1, 0, 64, protocol, 0, address.packed, bytes(4)
        )
    else:
        header = struct.pack(">IHBB16s16s", 6 << 28, len(payload), protocol, 64, address.packed, bytes(16))
    ethertype = 0x0800 if address.version == 4 else 0x86DD
    return (bytes(12) + ethertype.to_bytes(2, "big") + header + payload).ljust(max(size, 60), b"\0")


def test_the_reference_of_nginx(bpf: BpfObject) -> None:
    limiter = Limiter(bpf, rate_limit(f"{DEFAULTS}, default: {{syn: {{rate: 10r/s, burst: 20}}}}"), [80], [])
    syn = packet("198.51.100.7", 80)
    start = 10**12
    assert [limiter.passes(syn, start) for _ in range(30)] == [True] * 21 + [False] * 9
    assert [limiter.passes(syn, start + at * MS) for at in (99, 100, 100, 199, 200, 10_000)] == [
        False, True, False, False, True, True,
    ]  # fmt: skip


def test_each_port_has_the_policy_of_its_own(bpf: BpfObject) -> None:
    config = rate_limit(
        f"{DEFAULTS}, default: {{syn: {{rate: 1/s, burst: 2}}}}, listen: [30000], "
        "ports: {'80,443': {syn: {rate: 1/s, burst: 5}}, 8000-8010: {packets: {rate: 1/s, burst: 7}}}, "
        "udp: {443: {packets: {rate: 1/s, burst: 9}}}"
    )
    limiter = Limiter(bpf, config, [22, 80, 443, 8010, 65535], [443])
    passed = {port: sum(limiter.passes(packet("192.0.2.1", port), 10**12) for _ in range(20)) for port in (
        22, 443, 80, 8010, 65535, 30000, 81, 8000,
    )}  # fmt: skip
    # Ports of one policy share their bucket: 65535 and 30000 that of 22, and 80 that of 443.
    assert passed == {22: 3, 443: 6, 80: 0, 8010: 8, 65535: 0, 30000: 0, 81: 20, 8000: 20}
    assert limiter.judge(packet("192.0.2.1", 81), 10**12)[1] is RatelimitReason.PORT
    datagram = packet("192.0.2.1", 443, protocol=17)
    assert sum(limiter.passes(datagram, 10**12) for _ in range(20)) == 10


def test_bytes_pass_up_to_the_burst_and_then_at_the_rate(bpf: BpfObject) -> None:
    config = rate_limit(f"{DEFAULTS}, default: {{bytes: {{rate: 1MB/s, burst: 100kB}}}}")
    limiter = Limiter(bpf, config, [80], [])
    thousand = packet("2001:db8::1", 80, syn=False, size=1000)
    assert sum(limiter.passes(thousand, 10**12) for _ in range(200)) == 101
    # A second at 1 MB/s, asked ten times each millisecond.
    later = (10**12 + at * MS // 10 for at in range(1, 10_001))
    assert sum(limiter.passes(thousand, now) for now in later) == 1000


def test_wide_limits_are_of_all_sources_of_the_prefix(bpf: BpfObject) -> None:
    limits = "{syn: {rate: 1/s, burst: 4}, wide: {syn: {rate: 1/s, burst: 9}}}"
    limiter = Limiter(bpf, rate_limit(f"{DEFAULTS}, default: {limits}"), [80], [])
    found = [limiter.judge(packet(f"192.0.2.{n}", 80), 10**12)[1] for n in (1, 2, 3) for _ in range(6)]
    within, narrow, wide = RatelimitReason.WITHIN, RatelimitReason.SYN, RatelimitReason.SYN_WIDE
    assert found == [*[within] * 5, narrow, *[within] * 5, narrow, *[wide] * 6]


def test_lists_hold_for_both_families_and_not_for_the_other(bpf: BpfObject) -> None:
    config = rate_limit(
        f"{DEFAULTS}, allow: [192.0.2.0/24, '2001:db8:1::1'], management: [198.51.100.9], "
        "deny: [192.0.0.0/8, '::/0']"
    )
    limiter = Limiter(bpf, config, [80], [])
    reasons = {
        source: limiter.judge(packet(source, 80), 10**12)[1]
        for source in (
            "192.0.2.77",
            "198.51.100.9",
            "2001:db8:1::1",
            "2001:db8:1::2",
            "2001:db8:1::1",
            "192.1.2.3",
            "203.0.113.1",
        )
    }
    assert reasons == {
        "192.0.2.77": RatelimitReason.ALLOWED,
        "198.51.100.9": RatelimitReason.ALLOWED,
        "2001:db8:1::1": RatelimitReason.ALLOWED,
        "2001:db8:1::2": RatelimitReason.DENIED,
        "192.1.2.3": RatelimitReason.DENIED,
        "203.0.113.1": RatelimitReason.WITHIN,
    }
