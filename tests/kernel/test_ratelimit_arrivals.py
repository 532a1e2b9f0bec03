# SPDX-License-Identifier: Apache-2.0
"""A hundred thousand random arrivals: the program's verdicts and reasons are the model's, one by one."""

from __future__ import annotations

import random
from collections import Counter
from ipaddress import IPv6Address, IPv6Network, ip_address

import pytest

from tests.kernel.limiter_model import Limit, Model, Policy
from tests.kernel.limiter_rig import Rig, bytes_per_second, networks, per_second, rig
from tests.kernel.test_ratelimit_policy import packet
from tidegate.kernel.layouts import RatelimitMode
from tidegate.ratelimit.keys import ban_key

pytestmark = pytest.mark.kernel

ARRIVALS = 20_000
PORTS = {(6, 22): 1, (6, 80): 2, (6, 443): 3, (17, 443): 4, (6, 8443): 5}
SOURCES = [
    *(f"198.51.100.{n}" for n in range(6)),
    *(f"203.0.{n}.9" for n in range(3)),
    *(f"2001:db8:0:{n // 2}::{n}" for n in range(6)),
    "2001:db8:7::1",
]
ALLOWED = networks("198.51.100.4/31", "2001:db8:0:1::3/128")
DENIED = networks("203.0.2.0/24", "2001:db8:0:2::/64", "198.51.100.0/29")
#: Nanoseconds between arrivals: together, near together, and long after; and clocks that are set.
GAPS = (0, 0, 0, 0, 0, 1, 1000, 1000, 10**6, 10**6, 10**7, 10**8)
STEPS = (-1, -(10**6), -(10**9), -3600 * 10**9, 3600 * 10**9)


def policies(rng: random.Random) -> dict[int, Policy]:
    """Return policies of the same shapes with other numbers."""

    def some() -> Limit:
        return per_second(rng.choice((1, 10, 333, 1000)), rng.choice((0, 1, 5, 20)))

    def size() -> Limit:
        return bytes_per_second(rng.choice((1000, 12_345, 10**6)), rng.choice((60, 1500, 20_000)))

    return {
        1: Policy({"packets": some()}),
        2: Policy({"syn": some(), "packets": some(), "bytes": size()}),
        3: Policy({"syn": some()}, {"syn": some(), "packets": some(), "bytes": size()}),
        4: Policy({"bytes": size()}, {"bytes": size()}),
        5: Policy(),
    }


def frames(rng: random.Random) -> list[bytes]:
    """Return frames of each source to each port, SYNs and others, small and large, and fragments."""
    made = [
        packet(source, port, protocol=protocol, syn=syn, size=size)
        for source in SOURCES
        for protocol, port in [*PORTS, (6, 9999)]
        for syn in (True, False)
        for size in (60, rng.randint(61, 1514))
    ]
    fragments = [bytearray(packet(source, 443)) for source in SOURCES if ip_address(source).version == 4]
    for fragment in fragments:
        fragment[20:22] = b"\x00\x07"
    return made + [bytes(fragment) for fragment in fragments] * 4


class Both:
    """The program and the model, to which the same happens."""

    def __init__(self, rig: Rig, rng: random.Random) -> None:
        self.rig, self.model, self.rng = rig, Model(), rng
        self.model.ports = dict(PORTS)
        self.swap()

    def swap(self) -> None:
        """Put other policies in force."""
        self.model.policies = policies(self.rng)
        self.model.begin_anew()
        self.rig.put(self.model.policies, PORTS)

    def relist(self) -> None:
        """Change the lists."""
        allowed, denied = (self.rng.sample(some, self.rng.randint(0, len(some))) for some in (ALLOWED, DENIED))
        self.model.allowed, self.model.denied = allowed, denied
        self.rig.lists(allowed, denied)

    def ban(self) -> None:
        """Ban one or end a ban."""
        address = ip_address(self.rng.choice(SOURCES))
        entry = (
            IPv6Network((address.packed, 64), strict=False)
            if isinstance(address, IPv6Address)
            else networks(str(address))[0]
        )
        if entry in self.model.bans:
            del self.model.bans[entry]
            assert self.rig.maps.unban(ban_key(address))
        else:
            until = self.rng.choice((0, self.rig.now + 10**7, self.rig.now - 1))
            self.model.bans[entry] = until
            self.rig.maps.ban(ban_key(address), until)

    def step(self) -> None:
        """Set the clock. No ban that is over begins anew by it: the real clock of bans never goes back."""
        self.rig.now += self.rng.choice(STEPS)
        self.model.bans.clear()
        for key in self.rig.maps.bans():
            assert self.rig.maps.unban(key)

    def remode(self) -> None:
        """Change the mode or the lease."""
        mode = self.rng.choice((RatelimitMode.MONITOR, RatelimitMode.ENFORCE, RatelimitMode.ENFORCE))
        self.model.mode = mode.name.removeprefix("RATELIMIT_MODE_").lower()
        self.model.lease_ns = self.rng.choice((0, self.rig.now + 10**8))
        self.rig.maps.set_mode(mode, self.model.lease_ns)


@pytest.mark.parametrize("seed", range(5))
def test_random_arrivals_are_judged_as_the_model_does(seed: int) -> None:
    _compare(random.Random(seed), 10**15, ARRIVALS)


def test_a_clock_that_outgrows_its_56_bits() -> None:
    """As it does after 2.3 years, and here also steps back and forth."""
    end = _compare(random.Random(56), (1 << 56) - 100 * 10**9, ARRIVALS)
    assert end > 1 << 56


def _compare(rng: random.Random, start: int, arrivals: int) -> int:
    told, expected = list[tuple[str, str]](), list[tuple[str, str]]()
    with rig() as opened:
        opened.now = start
        both, sent = Both(opened, rng), frames(rng)
        happenings = (both.swap, both.relist, both.ban, both.ban, both.remode, both.step)
        for n in range(arrivals):
            if n % 100 == 99:
                rng.choice(happenings)()
            opened.now += rng.choice(GAPS) * rng.randint(0, 9)
            frame = rng.choice(sent)
            told.append(opened.judge(frame))
            expected.append(both.model.judge(frame, opened.now))
        assert [(n, told[n], expected[n]) for n in range(arrivals) if told[n] != expected[n]][:3] == []
        assert sum(opened.counted().values()) == arrivals
        assert opened.noted("guarded") == opened.noted("contended") == 0
    reasons = Counter(reason for _, reason in told)
    seen = {"allowed", "denied", "banned", "within", "port", "syn", "packets", "bytes", "syn_wide", "bytes_wide"}
    assert min(reasons[reason] for reason in seen) > 5, reasons
    return opened.now
