# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.config import parse
from tidegate.config.limits import FURTHEST_NS, LARGEST_PACKET, MOST_PORT_POLICIES, Bucket, ByteBucket, RateLimit
from tidegate.kernel import layouts
from tidegate.kernel.layouts import Ratelimit, RatelimitPolicyNumber
from tidegate.ratelimit.policy import SKETCH_ROWS, Compiled, compiled, limit_of, sizes

pytestmark = pytest.mark.unit
TABLES = Path(__file__).parents[2] / "bpf/include/ratelimit_tables.bpf.h"
BYTE = 1 << Ratelimit.BYTE_SHIFT


def rate_limit(text: str) -> RateLimit:
    return parse(f"rate_limit: {{{text}}}".encode(), "f").rate_limit


def limit(text: str) -> tuple[int, int]:
    """Compile one limit of SYNs."""
    return unpacked(rate_limit(f"default: {{syn: {text}}}").default.syn)


def unpacked(bucket: Bucket | ByteBucket | None) -> tuple[int, int]:
    cost, tolerance = layouts.RATELIMIT_LIMIT.unpack(limit_of(bucket))
    return int(cost), int(tolerance)


def limits(of: Compiled, policy: int) -> list[tuple[int, int]]:
    """Return a policy's six limits: SYN, packets and bytes of the narrow prefix, then of the wide one."""
    size = layouts.RATELIMIT_POLICY.size
    return list(layouts.RATELIMIT_LIMIT.iter_unpack(of.policies[policy * size : (policy + 1) * size]))


def policy_of(of: Compiled, port: int, protocol: str = "tcp") -> int:
    """Return a port's policy as the kernel program looks it up."""
    size = layouts.RATELIMIT_PORTS.size
    entry = layouts.RatelimitPorts._make(layouts.RATELIMIT_PORTS.unpack_from(of.ports, port // 4 * size))
    return entry.tcp[port & 3] if protocol == "tcp" else entry.udp[port & 3]


def back_to_back(bucket: Bucket) -> int:
    """Count how many pass that come at once, by the kernel's rule."""
    cost, tolerance = unpacked(bucket)
    ahead, passed = 0, 0
    while ahead <= tolerance:
        ahead, passed = ahead + cost, passed + 1
    return passed


@pytest.mark.parametrize(
    ("text", "cost", "tolerance"),
    [
        ("{rate: 10/s, burst: 20}", 100_000_000, 2_000_000_000),
        ("{rate: 10r/s, burst: 20}", 100_000_000, 2_000_000_000),
        ("{rate: 600r/m, burst: 20}", 100_000_000, 2_000_000_000),
        ("{rate: 100/m}", 600_000_000, 0),
        ("{rate: 3/s, burst: 3}", 333_333_333, 999_999_999),
        ("{rate: 6/s, burst: 3}", 166_666_667, 500_000_001),
        ("{rate: 1/h, burst: 9999}", 3_600_000_000_000, 35_996_400_000_000_000),
        ("{rate: 1000000000/s, burst: 1}", 1, 1),
    ],
)
def test_cost_and_tolerance_of_packets(text: str, cost: int, tolerance: int) -> None:
    assert limit(text) == (cost, tolerance)


@pytest.mark.parametrize(
    ("text", "cost", "tolerance"),
    [
        ("{rate: 1MB/s, burst: 1MB}", 1000 * BYTE, 1_000_000_000),
        ("{rate: 1000MB/s, burst: 64KiB}", BYTE, 65536),
        ("{rate: 12MB/s, burst: 24MB}", 5_461_333, 24_000_000 * 5_461_333 // BYTE),
        ("{rate: 1B/s, burst: 64KiB}", 10**9 * BYTE, 65536 * 10**9),
        ("{rate: 60/m, burst: 64KiB}", 10**9 * BYTE, 65536 * 10**9),
        ("{rate: 1TB/s, burst: 1TiB}", 66, (1 << 40) * 66 // BYTE),
    ],
)
def test_cost_and_tolerance_of_bytes(text: str, cost: int, tolerance: int) -> None:
    assert unpacked(rate_limit(f"default: {{bytes: {text}}}").default.bytes) == (cost, tolerance)


def test_the_reference_of_nginx_lets_21_pass_back_to_back() -> None:
    assert back_to_back(Bucket(rate=10.0, burst=20)) == 21


@given(st.integers(1, 10**9), st.sampled_from([1, 60, 3600]), st.integers(0, 300))
@settings(max_examples=60)
def test_one_more_than_the_burst_passes_back_to_back(number: int, seconds: int, burst: int) -> None:
    assert back_to_back(Bucket(rate=number / seconds, burst=burst)) == burst + 1


@given(st.floats(1, 1e12), st.lists(st.integers(1, LARGEST_PACKET), max_size=20))
@settings(max_examples=60)
def test_bytes_within_the_burst_pass_back_to_back(rate: float, packets: list[int]) -> None:
    burst = max(LARGEST_PACKET, sum(packets))
    cost, tolerance = unpacked(ByteBucket(rate=rate, burst=burst))
    assert sum(cost * size >> Ratelimit.BYTE_SHIFT for size in packets) <= tolerance
    assert abs(Fraction(cost, BYTE) * Fraction(rate) - 10**9) <= Fraction(rate) / (2 * BYTE)
    assert (tolerance + (cost * LARGEST_PACKET >> Ratelimit.BYTE_SHIFT)) < FURTHEST_NS
    assert cost * LARGEST_PACKET < 1 << 64  # so much the kernel multiplies


def test_numbers_of_policies_are_those_of_the_kernel() -> None:
    first, most = RatelimitPolicyNumber.RATELIMIT_POLICY_DEFAULT, RatelimitPolicyNumber.RATELIMIT_POLICY_MAX
    assert first + 1 + MOST_PORT_POLICIES == most
    assert f"#define SKETCH_ROWS {SKETCH_ROWS}\n" in TABLES.read_text(encoding="utf-8")


def test_without_limits_there_are_none() -> None:
    found = compiled(RateLimit(), [80], [53])
    assert found.policies == bytes(64 * layouts.RATELIMIT_POLICY.size)
    assert len(found.ports) == 16384 * layouts.RATELIMIT_PORTS.size
    assert found.names == ("", "default")
    assert [policy_of(found, port) for port in (79, 80, 81, 53)] == [0, 1, 0, 0]
    assert [policy_of(found, port, "udp") for port in (53, 80)] == [1, 0]


def test_dimensions_and_widths_are_in_the_order_of_the_kernel() -> None:
    narrow = "syn: {rate: 1000/s, burst: 1}, packets: {rate: 100/s, burst: 2}, bytes: {rate: 1kB/s, burst: 100kB}"
    wide = "wide: {syn: {rate: 2000/s, burst: 3}, bytes: {rate: 2kB/s, burst: 200kB}}"
    found = compiled(rate_limit(f"default: {{{narrow}, {wide}}}"), [], [])
    assert limits(found, 1) == [
        (10**6, 10**6),
        (10**7, 2 * 10**7),
        (10**6 * BYTE, 10**11),
        (500_000, 1_500_000),
        (0, 0),
        (500_000 * BYTE, 10**11),
    ]
    assert limits(found, 0) == limits(found, 2) == [(0, 0)] * 6


def test_ports_of_their_own_policies_only_where_somebody_listens() -> None:
    found = compiled(
        rate_limit(
            "default: {syn: {rate: 10/s}}, "
            "ports: {'80,443': {syn: {rate: 50/s}}, 8000-8010: {packets: {rate: 9/s}}}, "
            "udp: {443: {packets: {rate: 20/s}}}"
        ),
        [22, 443, 8000, 8010, 8011, 65535, 1],
        [443, 53],
    )
    assert found.names == ("", "default", "80,443", "8000-8010", "udp 443")
    numbers = {port: policy_of(found, port) for port in (1, 22, 80, 443, 444, 8000, 8005, 8010, 8011, 65535)}
    assert numbers == {1: 1, 22: 1, 80: 0, 443: 2, 444: 0, 8000: 3, 8005: 0, 8010: 3, 8011: 1, 65535: 1}
    assert {port: policy_of(found, port, "udp") for port in (443, 53, 80, 22)} == {443: 4, 53: 1, 80: 0, 22: 0}
    assert [limits(found, n)[0][0] for n in range(5)] == [0, 10**8, 2 * 10**7, 0, 0]
    assert limits(found, 4)[1] == (5 * 10**7, 0)


def test_every_port_listening_as_in_simulations() -> None:
    found = compiled(rate_limit("ports: {443: {syn: {rate: 1/s}}}"), range(65536), range(65536))
    expected = bytearray(b"\1" * 65536)
    expected[443] = 2
    assert bytes(policy_of(found, port) for port in range(65536)) == expected
    assert bytes(policy_of(found, port, "udp") for port in range(65536)) == b"\1" * 65536


def test_further_ports_count_as_listened_on() -> None:
    found = compiled(rate_limit("listen: [443, 30000-30002], ports: {443: {syn: {rate: 1/s}}}"), [22], [])
    ports = (22, 80, 443, 29999, 30000, 30002, 30003)
    assert [policy_of(found, port) for port in ports] == [1, 0, 2, 0, 1, 1, 0]
    assert [policy_of(found, port, "udp") for port in ports] == [0, 0, 1, 0, 1, 1, 0]


def test_as_many_policies_as_there_may_be() -> None:
    entries = ", ".join(f"{port}: {{syn: {{rate: {port}/s}}}}" for port in range(1, MOST_PORT_POLICIES + 1))
    found = compiled(rate_limit(f"ports: {{{entries}}}"), range(1, 100), [])
    assert policy_of(found, MOST_PORT_POLICIES) == MOST_PORT_POLICIES + 1
    assert limits(found, MOST_PORT_POLICIES + 1)[0][0] == round(10**9 / MOST_PORT_POLICIES)
    assert len(found.policies) == 64 * layouts.RATELIMIT_POLICY.size


def test_sizes_of_tables() -> None:
    found = sizes(rate_limit("max_sources: 5000, sketch_cells: 4096, max_bans: 20000, max_prefixes: 300"))
    assert found == {
        "ratelimit_syns": 5000,
        "ratelimit_sources": 5000,
        "ratelimit_sketch": 16384,
        "ratelimit_allowed": 300,
        "ratelimit_denied": 300,
        "ratelimit_bans": 20000,
    }
